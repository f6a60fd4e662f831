"""Two processes of two devices each train like one process of four."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SHRUNK = (
    "--config=configs/demo.py",
    "--config.mode=train",
    "--config.data.variant=mini",
    "--config.batch_size=16",
    "--config.model.vision_depth=1",
    "--config.model.image_size=32",
    "--config.loss.matching_group=2",
    "--config.loss.box_l1=0",
    "--config.loss.box_giou=0",
    "--config.optimizer.warmup_steps=1",
    # Small, since Adam turns rounding in a vanishing gradient into a step of this size.
    "--config.optimizer.learning_rate=1e-5",
    "--config.loop.steps=3",
    "--config.loop.log_every=1",
)


def train(launcher: list[str], devices: int, prepared_dir, workdir) -> list[dict]:
    flags = [*SHRUNK, f"--config.data.prepared_dir={prepared_dir}", f"--workdir={workdir}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(
        [sys.executable, *launcher, *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_like_one(prepared_dir, tmp_path):
    one = train(["-m", "capret_jax.main"], 4, prepared_dir, tmp_path / "one")
    two = train(["launch/local_processes.py", "2"], 2, prepared_dir, tmp_path / "two")
    assert len(one) == len(two) == 3
    for here, there in zip(one, two, strict=True):
        here.pop("images_per_second"), there.pop("images_per_second")
        assert here == pytest.approx(there, rel=2e-3, abs=2e-4)
    checkpoint = tmp_path / "two" / "checkpoints" / "3"
    assert len(list((checkpoint / "data").glob("process_*.json"))) == 2


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
