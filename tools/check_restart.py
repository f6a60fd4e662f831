"""Kills and restarts a run repeatedly, and compares its final state with an undisturbed run's.

    python tools/check_restart.py --kills=10 --workdir=runs/restart -- \\
        --config=configs/demo.py --config.loop.checkpoint_every=50

Arguments after `--` are passed to `capret_jax.main`. Every kill is a SIGKILL at a random moment:
while Python starts, while XLA compiles, in a step or during a save. The exit code is 0 when
parameters, optimizer state and step are equal bit for bit.
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

_KILLS = flags.DEFINE_integer("kills", 10, "Number of kills.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for both runs, emptied.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments.")


def main(argv: list[str]) -> None:
    """Runs both, and compares their final states."""
    root, arguments = pathlib.Path(_WORKDIR.value), argv[1:]
    whole, killed = root / "whole", root / "killed"
    for path in (whole, killed):
        shutil.rmtree(path, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    startup, training = _time(arguments, whole)
    # So short that all killed runs together cannot reach the last step.
    longest = startup + training / _KILLS.value
    rng = random.Random(_SEED.value)
    for _ in tqdm(range(_KILLS.value), desc="kills"):
        _kill(arguments, killed, rng.uniform(0, longest))
    _finish(arguments, killed)
    arrays = _compare(_final_state(whole), _final_state(killed))
    print(f"after {_KILLS.value} kills, {arrays} arrays equal an undisturbed run's bit for bit")


def _start(arguments: list[str], workdir: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "capret_jax.main", f"--workdir={workdir}", *arguments]
    with _log(workdir).open("w") as log:
        return subprocess.Popen([*command, "--config.mode=train"], stdout=log, stderr=log)


def _log(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_suffix(".log")


def _time(arguments: list[str], workdir: pathlib.Path) -> tuple[float, float]:
    """Measures a whole run: seconds until its first step is logged, and from then on."""
    start, process = time.monotonic(), _start(arguments, workdir)
    curve = workdir / "metrics.jsonl"
    while process.poll() is None and not (curve.exists() and curve.stat().st_size):
        time.sleep(0.1)
    startup = time.monotonic() - start
    _wait(process, workdir)
    return startup, time.monotonic() - start - startup


def _finish(arguments: list[str], workdir: pathlib.Path) -> None:
    _wait(_start(arguments, workdir), workdir)


def _wait(process: subprocess.Popen, workdir: pathlib.Path) -> None:
    if process.wait():
        raise InputError(f"the run failed, see {_log(workdir)}")


def _kill(arguments: list[str], workdir: pathlib.Path, after: float) -> None:
    process = _start(arguments, workdir)
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


def _compare(expected: dict, actual: dict) -> int:
    """Compares two states bit for bit; returns their number of arrays.

    Raises:
        InputError: an array differs; the message names it.
    """
    pairs = zip(jax.tree.leaves_with_path(expected), jax.tree.leaves_with_path(actual), strict=True)
    count = 0
    for (path, first), (other_path, second) in pairs:
        if path != other_path or _bits(first) != _bits(second):
            raise InputError(f"{jax.tree_util.keystr(path)} differs between the two runs")
        count += 1
    return count


def _bits(array) -> tuple:
    array = np.asarray(array)
    return array.dtype, array.shape, array.tobytes()


if __name__ == "__main__":
    run(main)
