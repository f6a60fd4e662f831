"""Import layers: each package imports only packages on lower floors of README.md's table."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "capret_jax"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def read_floors() -> dict[str, int]:
    """Room -> floor, from README's table "| floor | rooms |"."""
    table = (ROOT / "README.md").read_text().split("| floor | rooms |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", table, re.MULTILINE)
    return {room: int(floor) for floor, cell in rows for room in re.findall(r"`(\w+)`", cell)}


FLOORS = read_floors()


def imported_rooms(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "capret_jax" and len(part) > 1}


def test_every_room_is_on_a_floor():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert rooms == FLOORS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imported_rooms(path) - {own}:
        assert FLOORS[other] < FLOORS[own], f"{own} imports {other}, which is not below it"


def test_the_contributors_page_does_not_repeat_the_list():
    assert "README.md#how-it-is-built" in (ROOT / "CONTRIBUTING.md").read_text()
