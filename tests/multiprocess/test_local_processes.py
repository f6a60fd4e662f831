"""Two processes of two devices train like one process of four, and resume its checkpoints."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
SHRUNK = (
    "--config=configs/demo.py",
    "--config.mode=train",
    "--config.data.variant=mini",
    "--config.evaluation.detect=False",
    "--config.evaluation.rerank=0",
    "--config.batch_size=16",
    "--config.model.vision_depth=1",
    "--config.model.image_size=32",
    "--config.loss.matching_group=2",
    "--config.loss.box_l1=0",
    "--config.loss.box_giou=0",
    "--config.loss.locations=0",
    "--config.optimizer.warmup_steps=1",
    # Its first moments are those of all parameters; tests/multiprocess/layouts.py has Muon.
    "--config.optimizer.name=adamw",
    # Small, since Adam turns rounding in a vanishing gradient into a step of this size.
    "--config.optimizer.learning_rate=1e-5",
    "--config.loop.steps=3",
    "--config.loop.log_every=1",
    "--config.loop.checkpoint_every=1",
)
ONE = ["-m", "capret_jax.main"], 4
TWO = ["launch/local_processes.py", "2"], 2
EVALUATED = "--config.mode=train_and_evaluate"


@pytest.fixture(scope="module")
def train(prepared_dir):
    """Runs a launcher with a number of devices per process; returns the training curve."""

    def run(
        launcher: list[str],
        devices: int,
        workdir: pathlib.Path,
        *overrides: str,
        kill_after: int | None = None,
    ) -> list[dict]:
        flags = [*SHRUNK, f"--config.data.prepared_dir={prepared_dir}", f"--workdir={workdir}"]
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
        command = [sys.executable, *launcher, *flags, *overrides]
        return _curve(command, environment, workdir, kill_after)

    return run


def _curve(command, environment, workdir: pathlib.Path, kill_after: int | None) -> list[dict]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if kill_after:
        wait_for_checkpoint(process, workdir, kill_after)
        process.kill()
    _, errors = process.communicate(timeout=240)
    if kill_after:
        assert process.returncode == -signal.SIGKILL, errors
        return []
    assert process.returncode == 0, errors
    curve = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for point in curve:
        point.pop("images_per_second")
    return curve


def wait_for_checkpoint(process: subprocess.Popen, workdir: pathlib.Path, step: int) -> None:
    while process.poll() is None and not (workdir / "checkpoints" / str(step)).is_dir():
        time.sleep(0.05)


@pytest.fixture(scope="module")
def one(train, tmp_path_factory):
    """Workdir and curve of one process of four devices."""
    workdir = tmp_path_factory.mktemp("one")
    return workdir, train(*ONE, workdir, EVALUATED)


@pytest.fixture(scope="module")
def two(train, tmp_path_factory):
    """Workdir and curve of two processes of two devices each."""
    workdir = tmp_path_factory.mktemp("two")
    return workdir, train(*TWO, workdir, EVALUATED)


def same(here: dict, there: dict) -> bool:
    return here == pytest.approx(there, rel=2e-3, abs=2e-4)


def test_two_processes_train_like_one(one, two):
    workdir, curve = two
    assert len(curve) == 3
    for here, there in zip(one[1], curve, strict=True):
        assert same(here, there)
    checkpoint = workdir / "checkpoints" / "3"
    assert len(list((checkpoint / "data").glob("process_*.json"))) == 2
    assert mean_precision(workdir) == pytest.approx(mean_precision(one[0]), abs=5e-3)


def mean_precision(workdir: pathlib.Path) -> float:
    return json.loads((workdir / "evaluation" / "metrics.json").read_text())["mAP"]


def saved_state(workdir: pathlib.Path, step: int) -> dict:
    path = workdir / "checkpoints" / str(step)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    saved = ocp.checkpointables_metadata(path).metadata["state"]
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved
    )
    return jax.device_get(ocp.load_checkpointables(path, {"state": abstract})["state"])


def first_moments(workdir: pathlib.Path) -> dict:
    """Adam's first moments after the second step.

    They are means of the gradients of two batches at the initial parameters, since the warm-up's
    first rate is 0.
    """
    (adam,) = (part for part in saved_state(workdir, 2)["opt_state"] if part and "mu" in part)
    return adam["mu"]


def test_two_processes_have_the_gradients_of_one(one, two):
    def check(ours, theirs):
        tolerance = 1e-5 * np.abs(theirs).max() + 1e-7
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=tolerance)

    jax.tree.map(check, first_moments(two[0]), first_moments(one[0]))


@pytest.mark.parametrize("before, after", [("one", TWO), ("two", ONE)], ids=["more", "fewer"])
def test_another_number_of_processes_resumes(before, after, train, request, tmp_path):
    workdir, curve = request.getfixturevalue(before)
    shutil.copytree(workdir / "checkpoints" / "2", tmp_path / "checkpoints" / "2")
    (last,) = train(*after, tmp_path)
    assert last["step"] == 3
    assert same(last, curve[-1])


def test_a_killed_run_ends_with_the_same_bits(one, train, tmp_path):
    train(*ONE, tmp_path, kill_after=1)
    train(*ONE, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, saved_state(tmp_path, 3), saved_state(one[0], 3))


def test_sigterm_to_one_process_stops_all_after_the_same_step(prepared_dir, tmp_path):
    rarely = [f"--config.loop.{key}=100000" for key in ("steps", "log_every", "checkpoint_every")]
    losses = [f"--config.loss.{name}=0" for name in ("itm", "mlm")]  # others compile longer
    data = [f"--config.data.prepared_dir={prepared_dir}", f"--workdir={tmp_path}"]
    command = [sys.executable, *TWO[0], *SHRUNK, *data, *rarely, *losses]
    launcher = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    curve = tmp_path / "metrics.jsonl"
    while launcher.poll() is None and not (curve.exists() and curve.read_text()):
        time.sleep(0.05)
    children = pathlib.Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    os.kill(int(children.split()[1]), signal.SIGTERM)
    printed, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, errors
    assert "stopped by SIGTERM at step" in printed
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    first, last = (json.loads(line)["step"] for line in curve.read_text().splitlines())
    assert first == 1 < last == int(checkpoint.name) < 100000
    assert len(list((checkpoint / "data").glob("process_*.json"))) == 2


def test_the_launcher_passes_sigterm_on_to_all_processes(tmp_path):
    program = f"""
import subprocess, sys
from launch import local_processes

CHILD = "trap 'touch stopped_$0; exit 0' TERM; touch $0; while :; do sleep 0.05; done"
local_processes._start = lambda index, *_: subprocess.Popen(
    ["sh", "-c", CHILD, str(index)], cwd="{tmp_path}"
)
sys.argv = ["local_processes", "2"]
sys.exit(local_processes.main())
"""
    launcher = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    while launcher.poll() is None and len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
    launcher.terminate()
    assert launcher.wait(timeout=20) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "stopped_0", "stopped_1"}


def test_a_failing_process_ends_the_others(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "launch/local_processes.py",
            "2",
            "--config=configs/absent.py",
            f"--workdir={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "configs/absent.py" in done.stderr
