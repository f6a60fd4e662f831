"""requirements.lock, from which `make` installs, against the ranges of setup.py."""

import importlib.metadata
import re

from packaging.requirements import Requirement

from tests.conftest import ROOT

# "name==1.2.3 ; marker \" and its hashes, a line each.
_ENTRY = re.compile(
    r"^([\w.-]+)==(\S+)(?: ;[^\\]+)? \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", re.M
)


def locked() -> dict[str, set[str]]:
    """Returns name -> versions, of which each is for some platforms."""
    versions: dict[str, set[str]] = {}
    for name, version in _ENTRY.findall((ROOT / "requirements.lock").read_text()):
        versions.setdefault(name.lower().replace("_", "-"), set()).add(version)
    return versions


def test_every_line_has_a_version_and_hashes():
    assert not _ENTRY.sub("", (ROOT / "requirements.lock").read_text()).strip()


def test_the_lock_has_a_version_that_setup_allows_of_every_requirement():
    versions = locked()
    for text in importlib.metadata.requires("capret_jax") or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": "dev"}):
            name = requirement.name.lower().replace("_", "-")
            assert versions.get(name), f"{name} is not in requirements.lock: make lock"
            assert all(map(requirement.specifier.contains, versions[name])), f"{text}: make lock"
