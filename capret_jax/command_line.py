"""What every program here does around its `main`."""

import sys
import traceback
import types
from collections.abc import Callable

import ml_collections
from absl import app, flags, logging

from capret_jax.distributed.part import Part
from capret_jax.distributed.process_group import label, leave
from capret_jax.errors import InputError


def run(main: Callable[[list[str]], None]) -> None:
    """Parses flags, calls `main`; a mistake in the input is one line on stderr and exit code 2."""
    logging.set_verbosity(logging.WARNING)
    _adopt_flags(sys.modules[main.__module__])
    try:
        app.run(main, flags_parser=_parse_flags)
    except (InputError, FloatingPointError) as error:
        print(f"error{label()}: {' '.join(str(error).split())}", file=sys.stderr)
        leave(2)
    except Exception:
        traceback.print_exc()
        print(f"failed{label()}", file=sys.stderr)
        leave(1)


def _adopt_flags(module: types.ModuleType) -> None:
    """Lets --help show a command's own text and flags, whatever script it was started by."""
    if module.__name__ == "__main__":
        return
    sys.modules["__main__"].__doc__ = module.__doc__
    for flag in flags.FLAGS.get_key_flags_for_module(module):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def load_config(flag: flags.FlagHolder) -> ml_collections.ConfigDict:
    """What a `DEFINE_config_file` flag names, with its overrides.

    Raises:
        InputError: there is no such file.
    """
    try:
        return flag.value.copy_and_resolve_references()
    except OSError as error:  # raised at first use, not while parsing
        raise InputError(f"--config cannot be loaded: {error}") from error


def parse_part(text: str) -> Part:
    """Parses "i/n", the i-th of n parts of the work, from 0.

    Raises:
        InputError: it is something else.
    """
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise InputError(f"--part={text} is not i/n with i from 0 to n - 1.")
    return Part(int(index), int(count))


def _parse_flags(argv: list[str]) -> list[str]:
    """Flag mistakes, unknown config keys among them, end like every other mistake."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(str(error)) from error
