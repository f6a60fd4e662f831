"""The command line of training: a mistake gives one line, exit code 2 and no workdir."""

import pathlib
import signal

import pytest

from tests.commands import in_process

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def restore_sigterm():
    """Restores the handler that the command replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def check(workdir: pathlib.Path, code: int, errors: str, message: str) -> None:
    assert code == 2, errors
    assert message in errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert not workdir.exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.batch_sise=8"], "batch_sise"),
        (["--config.batch_size=many"], "batch_size"),
        (["--config.mode=dream"], "config.mode='dream'"),
        (["--workdir=/proc/nowhere"], "--workdir=/proc/nowhere cannot be written"),
        (["--config=configs/absent.py"], "configs/absent.py"),
        (["config.seed=1"], "unexpected argument 'config.seed=1'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(ROOT)
    workdir = tmp_path / "run"
    default = "--config=configs/demo.py", f"--workdir={workdir}"
    code, _, errors = in_process.call("capret_jax.main", *default, *flags)
    check(workdir, code, errors, message)
