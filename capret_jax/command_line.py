"""Parsing of flags and reporting of errors, common to all commands."""

import sys
import traceback
import types
from collections.abc import Callable, Collection

import ml_collections
from absl import app, flags, logging

from capret_jax.buckets.urls import check_no_url
from capret_jax.distributed.part import Part
from capret_jax.distributed.process_group import (
    describe_lost_process,
    exit_with_group,
    process_label,
)
from capret_jax.errors import InputError, describe_system_error, first_line

# Stands for the arguments that are no flags, among names of flags.
ARGUMENTS = "arguments"


def run(main: Callable[[list[str]], None], buckets: Collection[str] = ()) -> None:
    """Parses the flags and calls a command's `main`.

    An `InputError`, a diverged loss, a full disk, a missing right or the end of another process is
    reported as one line on stderr with exit code 2, any other exception by its traceback with exit
    code 1.

    Args:
        main: a function of the arguments that are no flags, the program's name first.
        buckets: names of the flags whose paths may be in a bucket, and `ARGUMENTS` if the arguments
            may be. Others are refused there.
    """

    def checked(argv: list[str]) -> None:
        _check_urls(argv, buckets)
        main(argv)

    logging.set_verbosity(logging.WARNING)
    _adopt_flags(sys.modules[main.__module__])
    try:
        app.run(checked, flags_parser=_parse_flags)
    except (InputError, FloatingPointError) as error:
        line = " ".join(str(error).split())
        print(f"error{process_label()}: {line}", file=sys.stderr)
        exit_with_group(2, line)
    except Exception as error:
        if lost := describe_lost_process(error):
            print(f"error{process_label()}: {lost}", file=sys.stderr, flush=True)
            exit_with_group(2, None)
        if problem := describe_system_error(error):
            print(f"error{process_label()}: {problem}", file=sys.stderr)
            exit_with_group(2, problem)
        traceback.print_exc()
        print(f"failed{process_label()}", file=sys.stderr)
        exit_with_group(1, f"{type(error).__name__}: {first_line(error)}")


def _adopt_flags(module: types.ModuleType) -> None:
    """Makes --help show the docstring and flags of a command's module, not of its script."""
    if module.__name__ == "__main__":
        return
    sys.modules["__main__"].__doc__ = module.__doc__
    for flag in flags.FLAGS.get_key_flags_for_module(module):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _check_urls(argv: list[str], allowed: Collection[str]) -> None:
    """Refuses paths in buckets, in all flags and arguments but those allowed."""
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        # Overrides of a config, such as --config.init_from, are checked with its other keys.
        if name not in allowed and flag.present and "." not in name:
            # The value of a config's flag is its content.
            check_no_url(f"--{name}", getattr(flag, "config_filename", flag.value))
    for argument in argv[1:] if ARGUMENTS not in allowed else ():
        check_no_url("the argument", argument)


def load_config(flag: flags.FlagHolder) -> ml_collections.ConfigDict:
    """Loads the config of a `DEFINE_config_file` flag, with its overrides applied.

    Raises:
        InputError: the file does not exist.
    """
    try:
        return flag.value.copy_and_resolve_references()
    except OSError as error:  # raised at first use, not while parsing
        raise InputError(f"--config cannot be loaded: {error}") from error


def parse_part(text: str) -> Part:
    """Parses the value "i/n" of a flag --part, i from 0.

    Raises:
        InputError: the text has another form, or i is not less than n.
    """
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise InputError(f"--part={text} is not i/n with i from 0 to n - 1.")
    return Part(int(index), int(count))


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags, raising `InputError` for mistakes, unknown config keys included."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(str(error)) from error
