"""Every command as a process: its console script, and the script or module of the same function."""

import importlib.metadata
import pathlib
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# Command -> the script or module that does the same, arguments with a mistake, and the culprit that
# the message names.
COMMANDS = {
    "capret-train": (
        ["-m", "capret_jax.main"],
        ["--config=configs/demo.py", "--workdir=OUT", "--config.batch_sise=8"],
        "batch_sise",
    ),
    "capret-convert": (["tools/convert_torch_ckpt.py"], ["absent.th", "OUT"], "absent.th"),
    "capret-prepare": (
        ["tools/prepare_deepfashion2.py"],
        ["--source_dir=absent", "--out_dir=OUT"],
        "absent",
    ),
    "capret-index": (["tools/build_index.py"], ["--model=absent", "--out=OUT"], "absent"),
    "capret-serve": (["-m", "capret_jax.serve.app"], ["--model=absent"], "absent"),
    "capret-score": (
        ["tools/score_deepfashion2.py"],
        ["absent.json", "--query=q.json", "--gallery=g.json", "--json=OUT"],
        "absent.json",
    ),
    "capret-collect": (
        ["tools/collect_captions.py"],
        ["--config=configs/demo.py", "--model=absent", "--out=OUT", "--part=2/2"],
        "--part=2/2",
    ),
    "capret-ablate": (
        ["tools/run_ablation.py"],
        ["--config=configs/ablation.py", "--workdir=OUT", "--captions=haiku"],
        "haiku",
    ),
    "capret-plan": (["tools/plan.py"], ["--topology=abacus"], "--topology=abacus"),
}


def installed() -> set[str]:
    scripts = importlib.metadata.entry_points(group="console_scripts")
    return {script.name for script in scripts if script.value.startswith("capret_jax.")}


def test_every_installed_command_is_tried():
    assert installed() == COMMANDS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_process_ends_with_one_line_and_exit_code_two(name, tmp_path):
    script, arguments, culprit = COMMANDS[name]
    out = tmp_path / "out"
    arguments = [argument.replace("OUT", str(out)) for argument in arguments]
    for program in ([str(pathlib.Path(sys.executable).with_name(name))], [sys.executable, *script]):
        done = subprocess.run(
            [*program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2, done.stderr
        assert culprit in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        assert not out.exists()
