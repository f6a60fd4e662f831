"""Imports go one way: four floors, no arrow up, and closed rooms on the second floor."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "capret_jax"

FLOORS = {
    "errors": 0,
    "batch": 1,
    "mesh": 1,
    "models": 1,
    "data": 2,
    "losses": 2,
    "convert": 2,
    "captioning": 2,
    "train": 3,
    "retrieval": 3,
    "command_line": 4,
    "config": 4,
    "loading": 4,
    "experiment": 5,
    "main": 6,
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
