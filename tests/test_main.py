"""The command line: one line and exit code 2 for every mistake, and nothing half-written."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def call(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "capret_jax.main", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.batch_sise=8"], "batch_sise"),
        (["--config.batch_size=many"], "batch_size"),
        (["--config.mode=dream"], "config.mode='dream'"),
        (["--workdir=/proc/nowhere"], "--workdir=/proc/nowhere cannot be written"),
        (["--config=configs/absent.py"], "configs/absent.py"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(tmp_path, flags, message):
    workdir = tmp_path / "run"
    done = call("--config=configs/demo.py", f"--workdir={workdir}", *flags)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not workdir.exists()
