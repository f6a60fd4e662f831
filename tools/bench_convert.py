"""Measures conversions of random files of all published kinds: time, peak memory, exactness.

    python tools/bench_convert.py [--only=pretrain_base] [--folder=/tmp]

The largest kind needs 12 GB on disk. Each conversion runs in a separate process; its memory is
the peak resident set that the operating system reports.
"""

import gzip
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from absl import flags

from capret_jax.checkpoints.state_dict import read_state_dict, write_state_dict
from capret_jax.command_line import run
from capret_jax.models.beit import relative_position_index

ROOT = pathlib.Path(__file__).parent.parent
_MANIFESTS = ROOT / "tests" / "data" / "checkpoint_keys.json.gz"
_TIES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}

_ONLY = flags.DEFINE_string("only", "", "Measure only kinds whose name has this prefix.")
_FOLDER = flags.DEFINE_string("folder", None, "Folder for the files; the system's by default.")


def main(argv: list[str]) -> None:
    """Prints one line for each kind."""
    del argv
    manifests = json.loads(gzip.decompress(_MANIFESTS.read_bytes()))
    print(f"{'file':26}{'GB':>6}{'to JAX':>9}{'peak':>9}{'of file':>9}{'export':>9}{'exact':>7}")
    for name, shapes in manifests.items():
        if name.startswith(_ONLY.value):
            with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
                _measure(name, shapes, pathlib.Path(folder))


def _measure(name: str, shapes: dict[str, list[int]], folder: pathlib.Path) -> None:
    source, converted, exported = folder / "in.th", folder / "converted", folder / "out.th"
    _in_process(_write_random, source, shapes)
    size = source.stat().st_size
    seconds, peak = _convert(source, converted)
    export_seconds, _ = _convert(converted, exported, "--to=torch")
    exact = "yes" if _in_process(_equal, source, exported) else "NO"
    print(
        f"{name:26}{size / 1e9:6.2f}{seconds:7.1f} s{peak / 1e9:6.2f} GB{peak / size:8.2f}x"
        f"{export_seconds:7.1f} s{exact:>7}",
        flush=True,
    )


def _in_process(function: Callable, *arguments):
    """Calls in another process, because a child inherits the peak memory of its parent."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _write_random(path: pathlib.Path, shapes: dict[str, list[int]]) -> None:
    write_state_dict(path, _random_state(shapes), "torch")


def _random_state(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Makes normally distributed weights, with correct buffers and tied tensors."""
    rng = np.random.default_rng(0)
    state: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        tie = next((suffix for suffix in _TIES if name.endswith(suffix)), None)
        if tie:
            state[name] = state[name.replace(tie, _TIES[tie])]
        elif name.endswith("relative_position_index"):
            state[name] = relative_position_index(round((shape[0] - 1) ** 0.5)).astype(np.int64)
        elif name.endswith("position_ids"):
            state[name] = np.arange(shape[1])[None]
        else:
            state[name] = np.float32(0.02) * rng.standard_normal(shape, np.float32)
    return state


def _equal(source: pathlib.Path, exported: pathlib.Path) -> bool:
    """Returns True if names, shapes, dtypes and bits are equal."""
    state, other = read_state_dict(source), read_state_dict(exported)
    return state.keys() == other.keys() and all(
        array.dtype == other[name].dtype
        and array.shape == other[name].shape
        and array.tobytes() == other[name].tobytes()
        for name, array in state.items()
    )


def _convert(source: pathlib.Path, target: pathlib.Path, *flags: str) -> tuple[float, int]:
    """Runs the converter; returns seconds, and peak resident memory in bytes."""
    command = [sys.executable, str(ROOT / "tools" / "convert_torch_ckpt.py")]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, str(source), str(target), *flags], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"converting {source} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


if __name__ == "__main__":
    run(main)
