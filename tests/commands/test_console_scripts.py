"""Every console script as a process; the scripts in tools/ call the same functions."""

import importlib.metadata
import pathlib
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# Command -> arguments with a mistake, and the culprit that the message names.
COMMANDS = {
    "capret-train": (
        ["--config=configs/demo.py", "--workdir=OUT", "--config.batch_sise=8"],
        "batch_sise",
    ),
    "capret-convert": (["absent.th", "OUT"], "absent.th"),
    "capret-prepare": (
        ["--source_dir=absent", "--out_dir=OUT"],
        "absent",
    ),
    "capret-index": (["--model=absent", "--out=OUT"], "absent"),
    "capret-serve": (["--model=absent"], "absent"),
    "capret-score": (
        ["absent.json", "--query=q.json", "--gallery=g.json", "--json=OUT"],
        "absent.json",
    ),
    "capret-collect": (
        ["--config=configs/demo.py", "--model=absent", "--out=OUT", "--part=2/2"],
        "--part=2/2",
    ),
    "capret-ablate": (
        ["--config=configs/ablation.py", "--workdir=OUT", "--captions=haiku"],
        "haiku",
    ),
    "capret-plan": (["--topology=abacus"], "--topology=abacus"),
    "capret-evaluate": (
        ["absent", "--task=retrieval", "--data=absent.json", "--images=absent", "--out=OUT"],
        "absent is neither",
    ),
}


def installed() -> dict[str, str]:
    """Name -> module of the package's console scripts."""
    scripts = importlib.metadata.entry_points(group="console_scripts")
    return {s.name: s.module for s in scripts if s.module.startswith("capret_jax.")}


def test_every_installed_command_is_tried():
    assert installed().keys() == COMMANDS.keys()


@pytest.mark.parametrize("module", installed().values())
def test_a_script_in_tools_calls_the_same_function(module):
    package, name = module.rsplit(".", 1)
    if package == "capret_jax.commands":
        script = (ROOT / "tools" / f"{name}.py").read_text()
        assert f"from {module} import cli" in script and script.endswith("    cli()\n")
    else:
        assert package in ("capret_jax", "capret_jax.serve")  # python -m capret_jax.main


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_process_ends_with_one_line_and_exit_code_two(name, tmp_path):
    arguments, culprit = COMMANDS[name]
    out = tmp_path / "out"
    arguments = [argument.replace("OUT", str(out)) for argument in arguments]
    script = pathlib.Path(sys.executable).with_name(name)
    done = subprocess.run(
        [script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert culprit in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not out.exists()
