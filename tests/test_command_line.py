"""Reporting of errors by all commands."""

import errno
import os

import pytest

from capret_jax import command_line
from capret_jax.errors import InputError, describe_system_error


def chained(cause: Exception) -> Exception:
    """Returns an exception as a library raises it for another."""
    try:
        try:
            raise cause
        except Exception as error:
            raise RuntimeError("Save failed") from error
    except RuntimeError as error:
        return error


FULL = OSError(errno.ENOSPC, "No space left on device", "/disk/run/3.partial")
TENSORSTORE = ValueError(
    'RESOURCE_EXHAUSTED: Failed writing: "/disk/run/d/43": Failed to write 2617344 bytes to file '
    "30: No space left on device [os_error_code='28']\n  source locations"
)


def exit_of(error: Exception, monkeypatch, capsys) -> tuple[object, list[str]]:
    """Returns the exit code and the lines on stderr of a command that raises an error."""

    def raising(*args, **options):
        raise error

    monkeypatch.setattr(command_line.app, "run", raising)
    with pytest.raises(SystemExit) as ended:
        command_line.run(exit_of)
    return ended.value.code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("error", [FULL, chained(FULL), TENSORSTORE, chained(TENSORSTORE)])
def test_a_full_disk_is_one_line_that_names_the_place(error, monkeypatch, capsys):
    code, lines = exit_of(error, monkeypatch, capsys)
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("error: ")
    assert "/disk/run/" in lines[0]
    assert "No space left on device" in lines[0]
    assert lines[0].endswith("free some space there, and run the same command again")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EFBIG, errno.EDQUOT])
def test_refusals_of_the_system_have_a_remedy(number):
    line = describe_system_error(OSError(number, os.strerror(number), "x"))
    assert line is not None
    assert line.startswith(f"x: {os.strerror(number)}; ")


def test_an_input_error_is_one_line(monkeypatch, capsys):
    assert exit_of(InputError("a\nb"), monkeypatch, capsys) == (2, ["error: a b"])


def test_other_errors_show_their_traceback(monkeypatch, capsys):
    looped = ValueError("a bug")
    looped.__cause__ = KeyError("x")
    looped.__cause__.__context__ = looped
    code, lines = exit_of(looped, monkeypatch, capsys)
    assert code == 1
    assert "Traceback" in lines[0] or any("Traceback" in line for line in lines)
    assert lines[-1] == "failed"
