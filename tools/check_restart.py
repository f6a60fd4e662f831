"""Kills a run again and again, and compares its end with that of an undisturbed one.

    python tools/check_restart.py --kills=10 --workdir=runs/restart -- \\
        --config=configs/demo.py --config.loop.checkpoint_every=50

What follows `--` goes to `capret_jax.main`. Every kill is a SIGKILL at a random moment: while
Python starts, while XLA compiles, in a step or in the middle of a save. Exits 0 when parameters,
optimiser state and step are the same to the bit.
"""

import pathlib
import random
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from absl import flags
from tqdm import tqdm

from capret_jax.checkpoints.training import FOLDER
from capret_jax.command_line import run
from capret_jax.errors import InputError

_KILLS = flags.DEFINE_integer("kills", 10, "How often.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for both runs, emptied.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")


def main(argv: list[str]) -> None:
    """Runs both, compares, prints."""
    root, overrides = pathlib.Path(_WORKDIR.value), argv[1:]
    whole, killed = root / "whole", root / "killed"
    for path in (whole, killed):
        shutil.rmtree(path, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    starting, training = _time(overrides, whole)
    # Tries that all train from their first moment on would together just reach the end.
    longest = starting + training / _KILLS.value
    moments = random.Random(_SEED.value)
    for _ in tqdm(range(_KILLS.value), desc="kills"):
        _kill(overrides, killed, moments.uniform(0, longest))
    _finish(overrides, killed)
    arrays = _compare(_final_state(whole), _final_state(killed))
    print(f"{_KILLS.value} kills, then the end of an undisturbed run to the bit: {arrays} arrays")


def _start(overrides: list[str], workdir: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "capret_jax.main", f"--workdir={workdir}", *overrides]
    with _log(workdir).open("w") as log:
        return subprocess.Popen([*command, "--config.mode=train"], stdout=log, stderr=log)


def _log(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_suffix(".log")


def _time(overrides: list[str], workdir: pathlib.Path) -> tuple[float, float]:
    """Seconds of a whole run, until its first step is done and from then on."""
    begun, process = time.monotonic(), _start(overrides, workdir)
    curve = workdir / "metrics.jsonl"
    while process.poll() is None and not (curve.exists() and curve.stat().st_size):
        time.sleep(0.1)
    starting = time.monotonic() - begun
    _wait(process, workdir)
    return starting, time.monotonic() - begun - starting


def _finish(overrides: list[str], workdir: pathlib.Path) -> None:
    _wait(_start(overrides, workdir), workdir)


def _wait(process: subprocess.Popen, workdir: pathlib.Path) -> None:
    if process.wait():
        raise InputError(f"the run failed, see {_log(workdir)}")


def _kill(overrides: list[str], workdir: pathlib.Path, after: float) -> None:
    process = _start(overrides, workdir)
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    else:
        raise InputError(f"the run ended before it could be killed, see {_log(workdir)}")


def _final_state(workdir: pathlib.Path) -> dict:
    path = max((workdir / FOLDER).iterdir(), key=lambda path: int(path.name))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    saved = ocp.checkpointables_metadata(path).metadata["state"]
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved
    )
    return jax.device_get(ocp.load_checkpointables(path, {"state": abstract})["state"])


def _compare(here: dict, there: dict) -> int:
    """How many arrays are the same in both.

    Raises:
        InputError: one is not; the message names it.
    """
    pairs = zip(jax.tree.leaves_with_path(here), jax.tree.leaves_with_path(there), strict=True)
    count = 0
    for (path, ours), (other, theirs) in pairs:
        if path != other or _bits(ours) != _bits(theirs):
            raise InputError(f"{jax.tree_util.keystr(path)} differs between the two runs")
        count += 1
    return count


def _bits(array) -> tuple:
    array = np.asarray(array)
    return array.dtype, array.shape, array.tobytes()


if __name__ == "__main__":
    run(main)
