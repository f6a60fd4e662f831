"""Documentation: files, config keys and links that it names exist."""

import dataclasses
import pathlib
import re
import runpy
from collections.abc import Iterator, Mapping

import pytest
from ml_collections import ConfigDict

from capret_jax.config import ExperimentConfig

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("capret_jax", "configs", "docs", "launch", "notebooks", "tests", "tools")
# A path from the repository's root, also as part of a command.
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*")
# A source file by its name alone, or by the end of its path.
SOURCE = re.compile(r"(?<![\w./-])[\w*][\w./*-]*\.(?:py|sh|sbatch|jinja|ipynb)\b")
CODE = re.compile(r"```.*?```|`[^`]+`", re.DOTALL)
# "config.data.name", with or without dashes; not "capret_jax.config" nor "run/config.json".
KEY = re.compile(r"(?<![\w./])(?:--)?config\.([a-z]\w*(?:\.\w+)*)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def page(request) -> pathlib.Path:
    return request.param


def all_keys(values: Mapping, prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys of nested settings, groups included, placeholders excluded."""
    for name, value in values.items():
        if value is None:
            continue
        yield f"{prefix}{name}"
        if isinstance(value, Mapping | ConfigDict):
            yield from all_keys(value, f"{prefix}{name}.")


@pytest.fixture(scope="module")
def keys() -> set[str]:
    """Keys of a run's config, and of an ablation's."""
    ablation = runpy.run_path(str(ROOT / "configs" / "ablation.py"))["get_config"]()
    return {*all_keys(dataclasses.asdict(ExperimentConfig())), *all_keys(ablation)}


def test_paths_exist(page):
    text = page.read_text()
    code = " ".join(CODE.findall(text))
    paths = {path.rstrip(".") for path in PATH.findall(text)}
    missing = {path for path in paths if not any(ROOT.glob(path))}
    names = set(SOURCE.findall(code)) - paths
    missing |= {name for name in names if not any(_find(name))}
    assert not missing


def _find(name: str) -> Iterator[pathlib.Path]:
    """Yields the files of the repository whose path ends with `name`."""
    for folder in FOLDERS:
        yield from (ROOT / folder).rglob(name)
    yield from ROOT.glob(name)


def test_config_keys_exist(page, keys):
    missing = set(KEY.findall(page.read_text())) - keys
    assert not missing


def headings(path: pathlib.Path) -> set[str]:
    """Returns the anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_relative_links_resolve(page):
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_names_are_in_the_files_that_where_to_look_lists():
    text = (ROOT / "docs" / "where_to_look.md").read_text()
    for item in re.findall(r"^\d\. .*?(?=\n\S|\n\n)", text, re.MULTILINE | re.DOTALL):
        paths = [path for name in PATH.findall(item) for path in _sources(ROOT / name)]
        source = "".join(path.read_text() for path in paths)
        for name in re.findall(r"`(?:\w+\.)?([A-Za-z_]\w+)`", item):
            assert re.search(rf"\b{name}\b", source), item


def _sources(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns a file, or the Python files in a folder."""
    return sorted(path.glob("*.py")) if path.is_dir() else [path]
