"""The loss of writing locations in a training step: on any mesh, in parts, and what it trains."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from capret_jax.config import (
    DataConfig,
    ExperimentConfig,
    LocationBatchConfig,
    LoopConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
)
from capret_jax.data.batch import Batch, LocatedObjects
from capret_jax.distributed.batch_share import to_global
from capret_jax.distributed.mesh import make_mesh, param_shardings
from capret_jax.errors import InputError
from capret_jax.train.base_run import _check_divisible
from capret_jax.train.forward import trained_parts
from capret_jax.train.setup import StepSetup
from capret_jax.train.state import make_params
from capret_jax.train.step import make_loss
from tests.small_model import SMALL_MODEL

B, PICTURES, N, CLASSES = 8, 16, 3, 5
MODEL = dataclasses.replace(SMALL_MODEL, image_size=32, location_layers=1, location_items=N)
LOSS = LossConfig(itc=0, itm=0, box_l1=0, box_giou=0, arcface=1.0, locations=0.5)


def make_config(accumulation: int = 1) -> ExperimentConfig:
    return ExperimentConfig(
        batch_size=B,
        accumulation=accumulation,
        model=MODEL,
        data=DataConfig(location_batch=LocationBatchConfig(images=PICTURES)),
        loss=LOSS,
        optimizer=OptimizerConfig(warmup_steps=1),
        loop=LoopConfig(steps=20),
    )


def make_batch() -> Batch:
    rng = np.random.default_rng(0)
    category = rng.integers(1, 14, (PICTURES, N), np.int32)
    category[np.arange(N) >= np.arange(PICTURES)[:, None] % (N + 1)] = 0
    objects = LocatedObjects(
        box=rng.uniform(0.3, 0.5, (PICTURES, N, 4)).astype(np.float32),
        category=category,
        image=rng.integers(0, 256, (PICTURES, 32, 32, 3), np.uint8),
    )
    return Batch(
        image=rng.integers(0, 256, (B, 32, 32, 3), np.uint8),
        token_ids=np.ones((B, 4), np.int32),
        token_mask=np.ones((B, 4), np.int32),
        identity=np.arange(B, dtype=np.int32) % CLASSES,
        caption_id=np.arange(B, dtype=np.int32),
        box=np.full((B, 4), 0.5, np.float32),
        valid=np.ones(B, bool),
        objects=objects,
    )


def gradients(shape: tuple[int, int, int], accumulation: int = 1):
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
    params = make_params(MODEL, CLASSES, jax.random.key(0))
    params = jax.device_put(params, param_shardings(mesh, params))
    setup = StepSetup.create(make_config(accumulation), mesh, np.arange(1, CLASSES + 1))
    compute = jax.jit(jax.value_and_grad(make_loss(setup), has_aux=True))
    batch = to_global(mesh, make_batch())
    (value, details), gradient = compute(params, batch, jax.random.key(1))
    return jax.device_get((value, details.metrics, gradient))


@pytest.fixture(scope="module")
def one_device():
    return gradients((1, 1, 1))


@pytest.mark.parametrize("shape, parts", [((2, 2, 2), 1), ((2, 1, 1), 4)])
def test_devices_and_parts_change_neither_loss_nor_gradients(shape, parts, one_device):
    def check(ours, theirs):
        tolerance = 1e-5 * np.abs(theirs).max() + 1e-6
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=tolerance)

    jax.tree.map(check, gradients(shape, parts), one_device)


def test_the_term_has_its_weight_and_trains_its_parts(one_device):
    value, metrics, gradient = one_device
    terms = {name: metrics[f"loss/{name}"][0] for name in ("arcface", "locations")}
    assert value == pytest.approx(terms["arcface"] + 0.5 * terms["locations"], rel=1e-5)
    # Close to chance before training, with 3 x 5 weighted tokens of 1016.
    assert terms["locations"] == pytest.approx(math.log(1016), rel=0.1)
    assert metrics["locations/accuracy"][1] == PICTURES * N
    trained = {
        path[0]
        for path, leaf in flatten_dict(gradient["model"]).items()
        if np.abs(leaf).max() > 1e-9
    }
    assert trained == trained_parts(LOSS) == {"vision", "vision_proj", "locations"}


def test_pictures_of_the_batch_itself_are_encoded_once():
    """A task's pictures are its location batch; the gradient is that of the same pictures apart."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config = make_config()
    loss = dataclasses.replace(LOSS, arcface=0.0)
    setup = StepSetup.create(dataclasses.replace(config, loss=loss), mesh, np.ones(CLASSES, int))
    batch, params = make_batch(), make_params(MODEL, CLASSES, jax.random.key(0))
    first = jax.tree.map(lambda x: x[:B], batch.objects)
    apart = dataclasses.replace(batch, objects=first)
    within = dataclasses.replace(
        batch, image=first.image, objects=dataclasses.replace(first, image=None)
    )
    values = [
        jax.jit(make_loss(setup))(params, to_global(mesh, x), jax.random.key(1))[0]
        for x in (apart, within)
    ]
    assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-6)


def test_the_decoder_comes_with_its_loss_and_photographs_divide_over_devices():
    config = make_config()
    model = dataclasses.replace(MODEL, location_layers=0)
    assert dataclasses.replace(config, model=model).model.location_layers == 1
    without = dataclasses.replace(config, model=model, loss=LossConfig())
    assert without.model.location_layers == 0
    assert (config.images_per_step, without.images_per_step) == (B + PICTURES, B)
    with pytest.raises(InputError, match=r"data.location_batch.images=16 does not divide over"):
        _check_divisible(dataclasses.replace(config, batch_size=24), 3)
