"""The shipped configuration of the ablation, and a small one for tests."""

import pathlib
import runpy

import ml_collections
import pytest

from capret_jax.config import DataConfig, to_config_dict
from capret_jax.data.schema import LEVELS
from tests.captioning.conftest import answering_config, serve  # noqa: F401 - fixture

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def shipped_config(data: str = "demo") -> ml_collections.ConfigDict:
    return runpy.run_path(str(CONFIGS / "ablation.py"))["get_config"](data)


@pytest.fixture(scope="session")
def small_config(prepared_dir) -> ml_collections.ConfigDict:
    """The shipped config with a model, data and steps for tests."""
    config = shipped_config()
    data = DataConfig(variant="mini", prepared_dir=str(prepared_dir), max_tokens=24)
    config.pretraining = to_config_dict(answering_config(data))
    config.pretraining.data.views_per_identity = 0
    config.pretraining.data.vocabulary = tuple(LEVELS)
    config.read_by = ("conversation", "none", "fine_tuned")
    experiment = config.experiment
    experiment.model = config.pretraining.model.copy_and_resolve_references()
    experiment.model.decoder_layers = 0
    experiment.batch_size, experiment.loss.matching_group = 16, 2
    experiment.optimizer.warmup_steps = 1
    experiment.data.variant, experiment.data.prepared_dir = "mini", str(prepared_dir)
    experiment.data.max_tokens = 40  # a small vocabulary needs many pieces for a word
    experiment.loop = config.pretraining.loop.copy_and_resolve_references()
    return config
