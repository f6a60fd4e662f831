"""Shardings of parameters and optimizer against a golden table, and meshes that do not fit."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from capret_jax.config import SIZES, ExperimentConfig, LossConfig, MeshConfig
from capret_jax.distributed.mesh import make_mesh, param_shardings, path_name, with_split_batch
from capret_jax.errors import InputError
from capret_jax.train.setup import StepSetup
from capret_jax.train.state import abstract_state
from tests.conftest import DATA

GOLDEN = DATA / "shardings.json"


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(2, 2, 2))


def specs(tree) -> dict[str, str]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {path_name(path): str(leaf.sharding.spec) for path, leaf in leaves}


@pytest.mark.parametrize("size", ["base", "large"])
def test_shardings_of_parameters_equal_the_golden_table(size, mesh):
    """The table is written by `python -m tests.distributed.test_mesh`."""
    assert table(size, mesh) == json.loads(GOLDEN.read_text())[size]


def state_of(size: str, mesh, classes: int = 4096, subcentres: int = 1):
    loss = LossConfig(arcface_subcentres=subcentres)
    config = ExperimentConfig(model=SIZES[size], loss=loss)
    return abstract_state(StepSetup.create(config, mesh, np.broadcast_to(1, classes)))


def table(size, mesh) -> dict[str, str]:
    return specs(state_of(size, mesh).params)


def test_optimizer_moments_are_sharded_like_their_parameters(mesh):
    state = state_of("base", mesh)
    params, moments = specs(state.params), specs(state.opt_state)
    for path, spec in params.items():
        assert [s for p, s in moments.items() if p.endswith(f"/{path}")] == [spec, spec]


def test_the_arcface_head_is_padded_and_split_over_all_devices(mesh):
    head = state_of("base", mesh, classes=1_000_000, subcentres=2).params["arcface"]
    width = SIZES["base"].embed_dim
    assert head.shape == (1_000_192, 2, width)  # the next multiple of 256
    assert head.sharding.shard_shape(head.shape) == (1_000_192 // 8, 2, width)


def test_axes_that_do_not_divide_are_not_split():
    mesh = make_mesh(MeshConfig(1, 2, 4))
    shapes = {"up": {"kernel": jax.ShapeDtypeStruct((1024, 1026), "float32")}}
    (sharding,) = jax.tree.leaves(param_shardings(mesh, shapes))
    assert sharding.spec == jax.sharding.PartitionSpec("fsdp", None)


@pytest.mark.parametrize("config", [MeshConfig(3), MeshConfig(fsdp=3), MeshConfig(tensor=0)])
def test_a_mesh_that_does_not_match_the_devices_is_refused(config):
    with pytest.raises(InputError, match="does not match 8 devices"):
        make_mesh(config)


def test_a_mesh_that_does_not_fit_the_links_is_refused(monkeypatch):
    def make(*args, **kwargs):
        raise NotImplementedError("the physical mesh topology (4, 4, 1)")

    monkeypatch.setattr(jax, "make_mesh", make)
    with pytest.raises(InputError, match=r"4 x 2 x 1 does not fit .* topology \(4, 4, 1\)"):
        make_mesh(MeshConfig(4, 2, 1))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    tables = {size: table(size, make_mesh(MeshConfig(2, 2, 2))) for size in ("base", "large")}
    GOLDEN.write_text(json.dumps(tables, indent=1) + "\n")


def test_states_stay_split_by_the_batch_where_it_divides():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    rows = jax.device_put(np.ones((16, 8), np.float32), NamedSharding(mesh, PartitionSpec(None)))

    def split(x):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return with_split_batch(x + 1)

    assert jax.jit(split)(rows).sharding.shard_shape((16, 8)) == (2, 8)
    assert jax.jit(split)(rows[:6]).shape == (6, 8)
    assert with_split_batch(rows) is rows
