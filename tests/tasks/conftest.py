"""Runs on tiny sets in the standard format of each task, from a converted random checkpoint."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import pytest

from capret_jax.checkpoints.conversion import Converted
from capret_jax.checkpoints.converted import save_converted
from capret_jax.checkpoints.report import Report
from capret_jax.config import (
    AugmentConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LoopConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    ReadConfig,
)
from capret_jax.config.loss import TERMS
from capret_jax.config.task import TASK_LOSSES
from capret_jax.distributed.mesh import make_mesh
from capret_jax.models.x2vlm import init_params
from capret_jax.train import base_run
from tests.small_model import ANSWERING_MODEL, SMALL_MODEL
from tests.tasks.files import WRITERS, captions_of

NO_CHANGES = AugmentConfig(
    margin=0.0, shrink=0.0, trim=0.0, flip=0.0, brightness=0.0, colour=0.0, erase=0.0
)
# Task -> its model, where it has parts that others lack; and settings of its losses.
MODELS = {
    "vqa": ANSWERING_MODEL,
    "nlvr2": dataclasses.replace(SMALL_MODEL, nlvr=True),
    "detection": dataclasses.replace(SMALL_MODEL, location_items=3, location_classes=8),
}
LOSSES = {
    "captioning": {"mlm_causal": True, "mlm_insert": True},
    "vqa": {"vqa_reduction": "weighted_sum"},
}


@pytest.fixture(scope="session")
def start(once) -> pathlib.Path:
    """A converted checkpoint with random parameters."""

    def fill(path: pathlib.Path) -> None:
        params = init_params(SMALL_MODEL, jax.random.key(0))
        report = Report("pretrain", "tiny", SMALL_MODEL.image_size)
        save_converted(path / "start", Converted(params, SMALL_MODEL, report))

    return once("tasks_start", fill) / "start"


@pytest.fixture
def one_device(monkeypatch) -> None:
    """Runs on one of the devices: the programs compile faster."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    monkeypatch.setattr(base_run, "make_mesh", lambda config: mesh)


@pytest.fixture
def task_config(start, tmp_path) -> Callable[..., ExperimentConfig]:
    """Returns the config of a short run on a task, whose files are written for it alone."""

    def make(name: str, steps: int = 2, **changes) -> ExperimentConfig:
        folder = tmp_path / "files"
        folder.mkdir(exist_ok=True)
        weights = {term: float(term in TASK_LOSSES[name]) for term in TERMS}
        config = ExperimentConfig(
            batch_size=16,
            init_from=str(start),
            task=WRITERS[name](folder),
            model=MODELS.get(name, SMALL_MODEL),
            data=DataConfig(
                max_tokens=12,
                captions=captions_of(name),
                augment=AugmentConfig(
                    margin=0.0,
                    shrink=0.0,
                    trim=0.0,
                    flip=0.0,
                    brightness=0.0,
                    colour=0.0,
                    erase=0.0,
                ),
                read=ReadConfig(threads=1, prefetch=2),
            ),
            loss=LossConfig(**weights, **LOSSES.get(name, {}), matching_group=0),
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=1),
            loop=LoopConfig(steps=steps, log_every=max(steps // 4, 1), checkpoint_every=steps),
            evaluation=EvaluationConfig(batch_size=8),
        )
        return dataclasses.replace(config, **changes)

    return make
