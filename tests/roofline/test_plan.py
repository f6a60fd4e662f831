"""Abstract batches against those of the input pipeline, and plans for devices that are not here."""

import dataclasses
import importlib.util
import os
import pathlib
import runpy
import shutil

import jax
import numpy as np
import pytest

from capret_jax.config import (
    ExperimentConfig,
    LossConfig,
    MeshConfig,
    RegionBatchConfig,
    ViewConfig,
    from_config_dict,
)
from capret_jax.data.batch import Batch
from capret_jax.data.pipeline import abstract_batch
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.roofline.chips import GPUS
from capret_jax.roofline.flops import program_flops
from capret_jax.roofline.plan import embedding_program, open_topology, plan, training_program
from capret_jax.train.run import Run

# JAX asks its plugin for a driver unless it is told to run on the CPU, as tools/plan.py does.
CUDA = bool(importlib.util.find_spec("jax_cuda13_plugin")) and os.getenv("JAX_PLATFORMS") == "cpu"
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


# Data of the configs below that are not files.
CHANGES = {
    "regions": {"view": ViewConfig("region", regions_per_image=2)},
    "region_batch": {"region_batch": RegionBatchConfig(images=8, regions_per_image=2)},
}


@pytest.fixture(params=["demo", "demo_pretrain", *CHANGES])
def config(request, tiny_config) -> ExperimentConfig:
    if request.param not in CHANGES:
        return shrink(request.param, tiny_config)
    data = dataclasses.replace(tiny_config.data, **CHANGES[request.param])
    return dataclasses.replace(tiny_config, data=data)


def test_abstract_batches_are_those_of_the_training_iterator(config, tmp_path):
    iterator = Run(config, tmp_path).training_batches()
    batch, abstract = next(iterator), abstract_batch(config)
    iterator.close()
    assert (batch.regions is None) == (abstract.regions is None)
    if batch.regions is not None:
        check_same_arrays(batch.regions, abstract.regions)
    check_same_arrays(batch, abstract)


def check_same_arrays(batch: Batch, abstract: Batch) -> None:
    for field in dataclasses.fields(Batch):
        if field.name == "regions":
            continue
        arrays, expected = getattr(batch, field.name), getattr(abstract, field.name)
        assert all(isinstance(array, np.ndarray) for array in jax.tree.leaves(arrays)), field.name
        ours, planned = (
            jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (arrays, expected)
        )
        assert ours == planned, field.name


def test_the_planned_step_of_a_vqa_config_has_few_flops_more_than_the_ideal(tiny_config):
    classes, mesh = 256, make_mesh(MeshConfig())
    loss = LossConfig(vqa=1.0, matching_group=2)
    program = training_program(dataclasses.replace(tiny_config, loss=loss), mesh, classes)
    assert program.images == tiny_config.batch_size
    traced = program.function.trace(*program.arguments)
    flops = program_flops(traced.jaxpr.jaxpr)
    assert program.ideal_flops <= flops <= 1.6 * program.ideal_flops


def test_a_plan_does_not_need_the_start_that_decides_what_is_fresh(tiny_config):
    config = shrink("x2vlm_pretrain", tiny_config)
    assert config.optimizer.fresh_multiplier == 2 and not pathlib.Path(config.init_from).exists()
    program = training_program(config, make_mesh(MeshConfig()), 256)
    assert program.images == tiny_config.batch_size + config.data.region_batch.images


def contents(folder: pathlib.Path) -> dict[pathlib.Path, tuple[int, int]]:
    """Returns path -> size and time of the last change, folders included."""
    stats = {path: path.stat() for path in [folder, *folder.rglob("*")]}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def test_a_plan_only_reads_what_the_run_starts_from(tiny_config, trained_dir, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(trained_dir, start)
    (start / "vocab.txt").unlink()  # it is not made again
    before = contents(start)
    optimizer = dataclasses.replace(tiny_config.optimizer, drift_penalty=0.1)
    config = dataclasses.replace(tiny_config, init_from=str(start), optimizer=optimizer)
    mesh = make_mesh(MeshConfig())
    for program in (training_program(config, mesh, 256), embedding_program(config, mesh)):
        program.function.trace(*program.arguments).lower()
    assert contents(start) == before


@pytest.mark.parametrize("name", ["h100", "h100:", "h100:0", "h100:8x", "a100:1x2x8", "h200:eight"])
def test_shapes_of_gpus_are_checked(name):
    with pytest.raises(InputError, match=f"--topology={name}: expected .* such as {name[:4]}:8"):
        open_topology(name)


@pytest.mark.skipif(CUDA, reason="the compiler for GPUs is installed")
def test_a_missing_compiler_is_named_with_its_extra():
    with pytest.raises(InputError, match=r"--topology=h100:8 needs .* 'capret_jax\[cuda\]'"):
        open_topology("h100:8")


@pytest.mark.skipif(not CUDA, reason="needs the extra [cuda], and JAX_PLATFORMS=cpu")
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
@pytest.mark.parametrize("name", ["a100:1", "h100:8", "h200:2x4"])
def test_a_step_compiles_for_gpus(name, tiny_config):
    topology = open_topology(name)
    mesh = make_mesh(MeshConfig(), topology.devices)
    assert topology.kind == GPUS[name[:4]].kind
    assert mesh.size == {"a100:1": 1}.get(name, 8)
    figures = plan(training_program(tiny_config, mesh, 256), mesh, topology.chip)
    assert figures["fits"] and figures["hbm_needed"] < 1e9
    assert figures["bytes"] > 0
    assert figures["seconds"].keys() == {"compute", "hbm", "links"}
    assert bool(figures["collectives"]) == (mesh.size > 1)
