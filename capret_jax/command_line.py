"""What every program here does around its `main`."""

import sys
import traceback
from collections.abc import Callable

from absl import app, flags, logging

from capret_jax.errors import InputError
from capret_jax.processes import label, leave


def run(main: Callable[[list[str]], None]) -> None:
    """Parses flags, calls `main`; a mistake in the input is one line on stderr and exit code 2."""
    logging.set_verbosity(logging.WARNING)
    try:
        app.run(main, flags_parser=_parse_flags)
    except (InputError, FloatingPointError) as error:
        print(f"error{label()}: {' '.join(str(error).split())}", file=sys.stderr)
        leave(2)
    except Exception:
        traceback.print_exc()
        print(f"failed{label()}", file=sys.stderr)
        leave(1)


def _parse_flags(argv: list[str]) -> list[str]:
    """Flag mistakes, unknown config keys among them, end like every other mistake."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(str(error)) from error
