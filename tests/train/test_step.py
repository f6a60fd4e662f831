"""The training step: equal on any mesh, with all terms, and decreasing the loss."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from capret_jax.config import (
    SIZES,
    ExperimentConfig,
    LoopConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
)
from capret_jax.data.batch import IGNORED_LABEL, Batch
from capret_jax.distributed.batch_share import to_global
from capret_jax.distributed.mesh import make_mesh, param_shardings
from capret_jax.errors import InputError
from capret_jax.train import setup as step_setup
from capret_jax.train.metrics import merge
from capret_jax.train.setup import StepSetup
from capret_jax.train.state import abstract_state, init_state, make_params
from capret_jax.train.step import TEMPERATURE_RANGE, _clamp_temperature, make_loss, make_step
from tests.small_model import SMALL_MODEL

STEPS, CLASSES = 6, 5
CLASS_SIZES = np.arange(1, CLASSES + 1)
LOSS = LossConfig(mlm=1.0, matching_group=2)


def make_batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 120, (16, 8), np.int32)
    labels = np.full((16, 3), IGNORED_LABEL, np.int32)
    labels[:, :2] = ids[:, 1:3]
    return Batch(
        image=rng.integers(0, 256, (16, 32, 32, 3), np.uint8),
        token_ids=ids,
        token_mask=np.ones((16, 8), np.int32),
        identity=np.arange(16, dtype=np.int32) % CLASSES,
        caption_id=np.arange(16, dtype=np.int32),
        box=np.full((16, 4), 0.5, np.float32),
        valid=np.ones(16, bool),
        masked_ids=np.where(np.arange(8) < 3, 4, ids).astype(np.int32),
        masked_positions=np.tile(np.array([1, 2, 0], np.int32), (16, 1)),
        masked_labels=labels,
    )


def make_setup(mesh, model: ModelConfig = SMALL_MODEL, loss: LossConfig = LOSS, **changes):
    """Makes the setup of a step for batches of `make_batch`."""
    config = ExperimentConfig(
        batch_size=16,
        model=model,
        loss=loss,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=1),
        loop=LoopConfig(steps=20),
        **changes,
    )
    return StepSetup.create(config, mesh, CLASS_SIZES)


def run(data: int, fsdp: int, tensor: int):
    """Trains a few steps on a mesh; returns the curve and the final parameters."""
    mesh = make_mesh(MeshConfig(data, fsdp, tensor), jax.devices()[: data * fsdp * tensor])
    setup = make_setup(mesh)
    step, state = make_step(setup), init_state(setup)
    curve = []
    for i in range(STEPS):
        state, metrics = step(state, to_global(mesh, make_batch(i % 2)))
        curve.append(merge([metrics]))
    assert step._cache_size() == 1, "the step was compiled more than once"
    return curve, jax.device_get(state.params)


@pytest.fixture(scope="module")
def one_device():
    return run(1, 1, 1)


def test_every_term_is_in_the_curve_and_the_loss_falls(one_device):
    curve, _ = one_device
    terms = {"itc", "itm", "mlm", "box_l1", "box_giou", "arcface"}
    assert {name for name in curve[0] if name.startswith("loss/")} == {f"loss/{t}" for t in terms}
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]


def test_eight_devices_train_like_one(one_device):
    curve, params = one_device
    other_curve, other_params = run(2, 2, 2)
    for here, there in zip(curve, other_curve, strict=True):
        assert here == pytest.approx(there, rel=2e-3, abs=2e-4)
    here, there = flatten_dict(params, sep="/"), flatten_dict(other_params, sep="/")
    for path in here:
        # A key's bias cancels in the softmax: its gradient is rounding alone, which Adam turns
        # into whole steps of random direction.
        if not path.endswith("/key/bias"):
            np.testing.assert_allclose(here[path], there[path], rtol=0, atol=3e-3, err_msg=path)


def test_starts_are_sharded_like_their_parameters():
    mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices())
    setup = make_setup(mesh, SIZES["base"])
    paths = flatten_dict(abstract_state(setup).params["model"], sep="/").keys()
    state = abstract_state(dataclasses.replace(setup, anchored=tuple(paths)))
    assert state.start is not None
    shardings = {path: start.sharding for path, start in state.start.items()}
    params = flatten_dict(state.params["model"], sep="/")
    assert shardings == {path: param.sharding for path, param in params.items()}
    assert not all(sharding.is_fully_replicated for sharding in shardings.values())


def anchored(monkeypatch, frozen):
    """Returns the paths that a drift penalty keeps near a start of two parameters."""
    paths = ("vision/cls_token", "text_proj/bias")
    monkeypatch.setattr(step_setup, "initialised_parameters", lambda *_: paths)
    optimizer = OptimizerConfig(warmup_steps=1, drift_penalty=0.5, frozen=frozen)
    config = ExperimentConfig(model=SMALL_MODEL, optimizer=optimizer, init_from="start")
    return StepSetup.create(
        config, make_mesh(MeshConfig(), jax.devices()[:1]), CLASS_SIZES
    ).anchored


def test_fresh_parameters_are_those_without_trained_values(monkeypatch):
    paths = ["itm_head/up/kernel", "text_proj/bias"]
    monkeypatch.setattr(step_setup, "fresh_parameters", lambda *_: paths)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    for multiplier, expected in ((1.0, ()), (2.0, tuple(paths))):
        optimizer = OptimizerConfig(warmup_steps=1, fresh_multiplier=multiplier)
        config = ExperimentConfig(model=SMALL_MODEL, optimizer=optimizer, init_from="start")
        assert StepSetup.create(config, mesh, CLASS_SIZES).fresh == expected


def test_frozen_parameters_have_no_start(monkeypatch):
    assert anchored(monkeypatch, ()) == ("vision/cls_token", "text_proj/bias")
    assert anchored(monkeypatch, ("model/vision/",)) == ("text_proj/bias",)
    with pytest.raises(InputError, match=r"drift_penalty=0.5 pulls nothing: .* are frozen"):
        anchored(monkeypatch, ("model/vision/", "model/text"))


def test_the_temperature_stays_in_its_range():
    for value, expected in ((9.0, TEMPERATURE_RANGE[1]), (-1.0, TEMPERATURE_RANGE[0])):
        params = {"model": {"temperature": jnp.float32(value)}}
        assert float(_clamp_temperature(params)["model"]["temperature"]) == pytest.approx(expected)


def gradients(shape: tuple[int, int, int], parts: int = 1):
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
    params = make_params(SMALL_MODEL, CLASSES, jax.random.key(0))
    params = jax.device_put(params, param_shardings(mesh, params))
    loss = make_loss(make_setup(mesh, accumulation=parts))
    compute = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return jax.device_get(compute(params, to_global(mesh, make_batch(0)), jax.random.key(1)))


@pytest.fixture(scope="module")
def one_device_gradients():
    """Loss and gradients of the whole batch on one device."""
    return gradients((1, 1, 1))


@pytest.mark.parametrize("shape, parts", [((2, 2, 2), 1), ((2, 1, 2), 4)])
def test_devices_and_parts_change_neither_loss_nor_gradients(shape, parts, one_device_gradients):
    def check(ours, theirs):
        tolerance = 1e-5 * np.abs(theirs).max() + 1e-6
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=tolerance)

    jax.tree.map(check, gradients(shape, parts), one_device_gradients)


MEMORY_ALONE = LossConfig(
    itc=0, itm=0, box_l1=0, box_giou=0, arcface=0, supcon=1.0, supcon_memory=32
)


def with_memory(shape: tuple[int, int, int], parts: int):
    """Computes loss, gradients and memory of a second batch, with the first in the memory."""
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
    setup = make_setup(mesh, loss=MEMORY_ALONE, accumulation=parts)
    state = init_state(setup)
    compute = jax.jit(jax.value_and_grad(make_loss(setup), has_aux=True))
    memory = state.memory
    for seed in range(2):
        batch = to_global(mesh, make_batch(seed))
        (value, details), gradient = compute(state.params, batch, jax.random.key(1), memory)
        memory = details.memory
    return jax.device_get((value, gradient["model"]["vision_proj"], memory))


def test_parts_of_a_batch_compare_with_the_memory_and_enter_it_in_order():
    whole, in_parts = with_memory((1, 1, 1), 1), with_memory((2, 1, 1), 4)
    assert whole[2].filled.all()
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5),
        in_parts,
        whole,
    )
