"""Abstract batches against those of the input pipeline, and the FLOPs of the planned step."""

import dataclasses
import pathlib
import runpy

import numpy as np
import pytest

from capret_jax.config import ExperimentConfig, LossConfig, MeshConfig, ViewConfig, from_config_dict
from capret_jax.data.batch import Batch
from capret_jax.data.pipeline import abstract_batch
from capret_jax.distributed.mesh import make_mesh
from capret_jax.roofline.flops import program_flops
from capret_jax.roofline.plan import training_program
from capret_jax.train.run import Run
from capret_jax.train.trainer import training_batches

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def shrink(name: str, tiny: ExperimentConfig) -> ExperimentConfig:
    """Loads a config of the repository, with the mini dataset, a small batch and small pictures."""
    config = from_config_dict(runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]())
    replace = dataclasses.replace
    variant, prepared_dir = tiny.data.variant, tiny.data.prepared_dir
    return replace(
        config,
        batch_size=tiny.batch_size,
        model=replace(config.model, image_size=tiny.model.image_size),
        data=replace(config.data, variant=variant, prepared_dir=prepared_dir),
        loss=replace(config.loss, matching_group=2),
    )


@pytest.fixture(params=["demo", "demo_pretrain", "regions"])
def config(request, tiny_config) -> ExperimentConfig:
    if request.param != "regions":
        return shrink(request.param, tiny_config)
    view = ViewConfig("region", regions_per_image=2)
    return dataclasses.replace(tiny_config, data=dataclasses.replace(tiny_config.data, view=view))


def test_abstract_batches_are_those_of_the_training_iterator(config, tmp_path):
    iterator = training_batches(Run(config, tmp_path))
    batch, abstract = next(iterator), abstract_batch(config)
    iterator.close()
    for field in dataclasses.fields(Batch):
        array, expected = getattr(batch, field.name), getattr(abstract, field.name)
        assert (array is None) == (expected is None), field.name
        if array is not None:
            assert isinstance(array, np.ndarray), field.name
            assert (array.shape, array.dtype) == (expected.shape, expected.dtype), field.name


def test_the_planned_step_of_a_vqa_config_has_few_flops_more_than_the_ideal(tiny_config):
    classes, mesh = 256, make_mesh(MeshConfig())
    loss = LossConfig(vqa=1.0, matching_group=2)
    program = training_program(dataclasses.replace(tiny_config, loss=loss), mesh, classes)
    assert program.images == tiny_config.batch_size
    traced = program.function.trace(*program.arguments)
    flops = program_flops(traced.jaxpr.jaxpr)
    assert program.ideal_flops <= flops <= 1.6 * program.ideal_flops
