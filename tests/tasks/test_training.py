"""Each task is trained from a converted random checkpoint, and learns its tiny set."""

import dataclasses
import json

import pytest

from capret_jax.tasks.run import TaskRun
from capret_jax.train.trainer import Trainer
from tests.tasks.files import WRITERS


def curve(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", WRITERS)
def test_the_loss_falls(name, task_config, tmp_path):
    config = task_config(name, steps=40)
    run = TaskRun(config, tmp_path)
    assert Trainer(run).train()
    lines = curve(tmp_path)
    for line in lines:
        print({k: round(v, 3) for k, v in line.items()})
