"""A whole run in a bucket: trained, resumed, evaluated, and read again by others."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from capret_jax.buckets.access import open_workdir
from capret_jax.checkpoints.loading import ModelFolder
from capret_jax.config import (
    EvaluationConfig,
    ExperimentConfig,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
)
from capret_jax.evaluation.suite import EvaluationSuite
from capret_jax.train.run import Run
from capret_jax.train.trainer import Trainer
from tests.small_model import SMALL_MODEL

URL = "gs://test/runs/one"


@pytest.fixture
def config(bucket, tiny_config) -> ExperimentConfig:
    """A run that compiles fast, with its data in a bucket."""
    folder = pathlib.Path(tiny_config.data.prepared_dir)
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.put("test", f"data/{path.relative_to(folder)}", path.read_bytes(), {})
    return dataclasses.replace(
        tiny_config,
        model=SMALL_MODEL,
        data=dataclasses.replace(tiny_config.data, prepared_dir="gs://test/data"),
        loss=LossConfig(itm=0.0, box_l1=0.0, box_giou=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
        loop=LoopConfig(steps=2, log_every=1, checkpoint_every=1),
        evaluation=EvaluationConfig(baselines=False),
    )


def parameters() -> dict[str, np.ndarray]:
    return ModelFolder(URL).load_params()["vision_proj"]


def steps(bucket) -> list[int]:
    lines = bucket.objects["test", "runs/one/metrics.jsonl"].data.decode().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.slow
def test_a_run_in_a_bucket_is_resumed_evaluated_and_read(bucket, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Trainer(Run(config, open_workdir(URL))).train()
    before = parameters()
    assert steps(bucket) == [1, 2]
    vocabulary = bucket.objects["test", "runs/one/vocab.txt"]

    for key in [key for key in bucket.objects if key[1].startswith("runs/one/checkpoints/2/")]:
        del bucket.objects[key]
    run = Run(config, open_workdir(URL))  # keeps nothing of the first one but what the bucket has
    assert run.checkpoints.latest_step() == 1
    Trainer(run).train()
    after = parameters()
    np.testing.assert_array_equal(after["kernel"], before["kernel"])
    assert steps(bucket) == [1, 2]
    assert bucket.objects["test", "runs/one/vocab.txt"] == vocabulary

    bucket.put("test", "runs/one/evaluation/old.json", b"{}", {})
    suite = EvaluationSuite(run)
    metrics = suite.run(run.state_to_evaluate())
    stored = bucket.objects["test", "runs/one/evaluation/metrics.json"].data
    assert json.loads(stored) == json.loads(json.dumps(metrics))
    assert ("test", "runs/one/evaluation/report.html") in bucket.objects
    assert ("test", "runs/one/evaluation/old.json") not in bucket.objects
    assert any("events.out.tfevents" in name for _, name in bucket.objects)

    begun = Run(dataclasses.replace(config, init_from=URL), _made(tmp_path / "next"))
    state = begun.initial_state()
    np.testing.assert_array_equal(state.params["model"]["vision_proj"]["kernel"], after["kernel"])
    assert (tmp_path / "next" / "vocab.txt").read_bytes() == vocabulary.data
    assert [path.name for path in tmp_path.iterdir()] == ["next"]


def _made(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    return folder
