"""Imports go one way, no arrow up, and closed rooms on the second floor."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "capret_jax"

FLOORS = {
    "errors": 0,
    "batch": 1,
    "batching": 1,
    "mesh": 1,
    "pages": 1,
    "processes": 1,
    "models": 2,  # asks the mesh for each device's part of a kernel
    "data": 3,
    "losses": 3,
    "convert": 3,
    "captioning": 4,
    "detection": 4,
    "train": 5,
    "retrieval": 5,
    "planning": 5,
    "command_line": 6,
    "config": 6,
    "loading": 6,
    "second_look": 7,
    "starting": 7,
    "collecting": 7,
    "serve": 7,
    "experiment": 8,
    "ablation": 9,
    "main": 9,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(parts: tuple[str, ...]) -> str | None:
    """The part of the package that a dotted name belongs to."""
    return parts[1] if len(parts) > 1 and parts[0] == "capret_jax" else None


def imported_rooms(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {room(tuple(name.split("."))) for name in names} - {None}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for other in imported_rooms(path) - {own}:
        assert FLOORS[other] < FLOORS[own], f"{own} imports {other}, which is not below it"
