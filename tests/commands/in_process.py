"""Calls a command's function in this process, as its console script would be called.

absl's flags are global, and commands define flags of the same names. Each call therefore sees the
flags of libraries and of one command alone.
"""

import contextlib
import importlib
import io
import sys
import types
from collections.abc import Iterator
from unittest import mock

from absl import app, flags
from absl.testing import flagsaver

app.define_help_flags()
_LOADED: dict[str, tuple[types.ModuleType, list[flags.Flag]]] = {}


def load(name: str) -> types.ModuleType:
    """Imports a command's module, without leaving its flags among the global ones.

    Args:
        name: e.g. "capret_jax.commands.run_ablation".
    """
    return _load(name)[0]


def call(name: str, *argv: object) -> tuple[int, str, str]:
    """Runs a command.

    Args:
        name: its module, which has a function `cli`.
        argv: its arguments.

    Returns:
        Exit code, stdout, stderr.
    """
    module, command_flags = _load(name)
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        _flags(name, command_flags),
        mock.patch.object(sys, "argv", [name, *map(str, argv)]),
        mock.patch.object(sys.modules["__main__"], "__doc__", ""),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            module.cli()
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return code, stdout.getvalue(), stderr.getvalue()


def _load(name: str) -> tuple[types.ModuleType, list[flags.Flag]]:
    if name not in _LOADED:
        imported = sys.modules.pop(name, None)
        with _flags(name, []):
            module = importlib.import_module(name)
            _LOADED[name] = module, flags.FLAGS.get_flags_for_module(name)
            libraries = _library_flags()
        vars(flags.FLAGS)["__flags"].update(libraries)  # the import may have brought new ones
        if imported:  # whoever imported it before keeps their module
            sys.modules[name] = imported
    return _LOADED[name]


@contextlib.contextmanager
def _flags(module: str, command_flags: list[flags.Flag]) -> Iterator[None]:
    """Has the flags of libraries and these of `module`, and restores all flags and their values."""
    saved, visible = dict(vars(flags.FLAGS)), flags.FlagValues()
    # Not `visible[name] = flag`, which refuses a flag's short name the second time.
    vars(visible)["__flags"].update(_library_flags())
    for flag in command_flags:
        visible[flag.name] = flag
        visible.register_flag_by_module(module, flag)
    vars(flags.FLAGS).update(vars(visible))
    try:
        with flagsaver.flagsaver():
            yield
    finally:
        vars(flags.FLAGS).clear()
        vars(flags.FLAGS).update(saved)


def _library_flags() -> dict[str, flags.Flag]:
    """Flags that no program of this repository defines, by their names."""
    found = {}
    for name in flags.FLAGS:
        module = flags.FLAGS.find_module_defining_flag(name)
        # Flags that `_flags` made visible belong to no module, and programs that tests load from
        # their files are not in `sys.modules`.
        if module in (None, __name__) or (
            module in sys.modules and not module.startswith(("capret_jax", "tests", "__main__"))
        ):
            found[name] = flags.FLAGS[name]
    return found
