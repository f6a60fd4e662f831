"""Runs of tiny random models on the tiny sets of `tests.tasks.files`."""

import dataclasses
import json
import pathlib

import jax
from jax.sharding import Mesh

from capret_jax.config import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LossConfig,
    TaskConfig,
)
from capret_jax.config.loss import TERMS
from capret_jax.config.task import TASK_LOSSES
from capret_jax.data.tokenizer import CaptionEncoder, build_vocabulary, load_tokenizer
from capret_jax.distributed.batch_share import BatchShare
from capret_jax.models.x2vlm import init_params
from capret_jax.tasks.readers import Examples, read_test
from tests.small_model import SMALL_MODEL
from tests.tasks.files import COLOURS, captions_of

MODEL = dataclasses.replace(
    SMALL_MODEL,
    decoder_layers=1,
    location_layers=1,
    location_items=3,
    location_classes=len(COLOURS),
    nlvr=True,
)
TEXTS = [f"a {c} picture this is plain {c} what colour is it? both have one box" for c in COLOURS]


@dataclasses.dataclass(frozen=True)
class TinyRun:
    """A random model and the test file of a task."""

    config: ExperimentConfig
    mesh: Mesh
    share: BatchShare
    encode: CaptionEncoder
    test: Examples


def tiny_run(task: TaskConfig, folder: pathlib.Path, mesh: Mesh, batch_size: int = 4) -> TinyRun:
    path = folder / "vocab.txt"
    if not path.exists():
        build_vocabulary([*TEXTS, "a picture of dark"], path, MODEL.vocab_size)
    weights = dict.fromkeys(TERMS, 0.0) | dict.fromkeys(TASK_LOSSES[task.name], 1.0)
    config = ExperimentConfig(
        model=MODEL,
        task=task,
        data=DataConfig(captions=captions_of(task.name)),
        loss=LossConfig(**weights, mlm_causal=task.name == "captioning"),
        evaluation=EvaluationConfig(batch_size=batch_size),
    )
    encode = CaptionEncoder(load_tokenizer(str(path)), 16)
    return TinyRun(config, mesh, BatchShare.of_mesh(mesh), encode, read_test(task))


def random_params() -> dict:
    # Results of the other parts do not depend on the decoder of locations.
    others = dataclasses.replace(MODEL, location_layers=0)
    locations = init_params(MODEL, jax.random.key(0))["locations"]
    return init_params(others, jax.random.key(0)) | {"locations": locations}


def read_json(path: pathlib.Path):
    return json.loads(path.read_text())
