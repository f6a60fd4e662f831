"""A region batch beside the batch of items: one step with the sum of their losses."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from capret_jax.config import (
    AugmentConfig,
    DataConfig,
    ExperimentConfig,
    LoopConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    RegionBatchConfig,
    ViewConfig,
)
from capret_jax.data.batch import Batch
from capret_jax.distributed.batch_share import to_global
from capret_jax.distributed.mesh import make_mesh, param_shardings
from capret_jax.errors import InputError
from capret_jax.losses import Metrics
from capret_jax.train.base_run import _check_divisible
from capret_jax.train.setup import StepSetup
from capret_jax.train.state import make_params
from capret_jax.train.step import make_loss
from tests.small_model import SMALL_MODEL

B, PICTURES, M, T, CLASSES, WEIGHT = 16, 16, 2, 8, 5, 0.5
# These compile fast; tests/train/test_forward.py has the other terms with regions.
LOSS = LossConfig(itc=1.0, itm=0.0, box_l1=1.0, box_giou=1.0, arcface=1.0)
MODEL = dataclasses.replace(SMALL_MODEL, image_size=16)


def make_config(accumulation: int = 1) -> ExperimentConfig:
    region_batch = RegionBatchConfig(images=PICTURES, regions_per_image=M, weight=WEIGHT)
    return ExperimentConfig(
        batch_size=B,
        accumulation=accumulation,
        model=MODEL,
        data=DataConfig(view=ViewConfig("image"), region_batch=region_batch),
        loss=LOSS,
        optimizer=OptimizerConfig(warmup_steps=1),
        loop=LoopConfig(steps=20),
    )


def make_batch(images: int, per_image: int, seed: int) -> Batch:
    rng, rows = np.random.default_rng(seed), images * per_image
    return Batch(
        image=rng.integers(0, 256, (images, 16, 16, 3), np.uint8),
        token_ids=rng.integers(5, 120, (rows, T), np.int32),
        token_mask=np.ones((rows, T), np.int32),
        identity=np.arange(rows, dtype=np.int32) % CLASSES,
        caption_id=np.arange(rows, dtype=np.int32),
        box=rng.uniform(0.3, 0.5, (rows, 4)).astype(np.float32),
        # The second region of every fourth picture is padding.
        valid=np.arange(rows) % 8 != 7 if per_image > 1 else np.ones(rows, bool),
    )


ITEMS, REGIONS = make_batch(B, 1, 0), make_batch(PICTURES, M, 1)
BOTH = dataclasses.replace(ITEMS, regions=REGIONS)


def gradients(
    config: ExperimentConfig, batch: Batch, key: jax.Array, shape: tuple[int, int, int] = (1, 1, 1)
) -> tuple[float, Metrics, dict]:
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
    params = make_params(MODEL, CLASSES, jax.random.key(0))
    params = jax.device_put(params, param_shardings(mesh, params))
    loss = make_loss(StepSetup.create(config, mesh, np.arange(1, CLASSES + 1)))
    compute = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, details), gradient = compute(params, to_global(mesh, batch), key)
    return jax.device_get((value, details.metrics, gradient))


@pytest.fixture(scope="module")
def together():
    return gradients(make_config(), BOTH, jax.random.key(1))


def test_loss_and_gradients_are_the_sum_of_those_of_both_batches(together):
    config, key = make_config(), jax.random.key(1)
    items = gradients(config.item_batch(), ITEMS, key)
    regions = gradients(config.region_batch(), REGIONS, jax.random.fold_in(key, 2))
    value, metrics, gradient = together
    assert value == pytest.approx(items[0] + WEIGHT * regions[0], rel=1e-6)
    assert metrics["loss"][0] == value
    theirs = items[1] | {f"regions/{name}": pair for name, pair in regions[1].items()}
    for name in theirs.keys() - {"loss"}:
        np.testing.assert_allclose(metrics[name], theirs[name], rtol=1e-5, err_msg=name)
    jax.tree.map(
        lambda ours, a, b: np.testing.assert_allclose(ours, a + WEIGHT * b, rtol=1e-4, atol=1e-5),
        gradient,
        items[2],
        regions[2],
    )


def test_each_batch_trains_its_own_terms(together):
    _, metrics, _ = together
    terms = {name.partition("loss/")[2] for name in metrics if name.startswith("loss/")}
    of_regions = {name.partition("loss/")[2] for name in metrics if "regions/loss/" in name}
    assert terms == {"itc", "arcface"}
    assert of_regions == {"itc", "box_l1", "box_giou"}
    assert metrics["regions/itc/accuracy"][1] == REGIONS.valid.sum() < PICTURES * M


def test_devices_and_parts_change_neither_loss_nor_gradients(together):
    def check(ours, theirs):
        tolerance = 1e-5 * np.abs(theirs).max() + 1e-6
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=tolerance)

    other = gradients(make_config(accumulation=2), BOTH, jax.random.key(1), (2, 2, 2))
    jax.tree.map(check, other, together)


def with_losses(**weights: float) -> ExperimentConfig:
    none = dict.fromkeys(("itc", "itm", "box_l1", "box_giou", "arcface"), 0.0)
    return dataclasses.replace(make_config(), loss=LossConfig(**none | weights))


def test_a_batch_that_trains_nothing_is_refused():
    with pytest.raises(InputError, match=r"region_batch.images=16 trains none of the weighted"):
        with_losses(arcface=1.0)
    with pytest.raises(InputError, match=r"weights boxes alone, .*region_batch.images=16 takes"):
        with_losses(box_l1=1.0)
    with pytest.raises(InputError, match=r"region_batch.weight=0.0 is not positive"):
        RegionBatchConfig(images=8, weight=0.0)
    with pytest.raises(InputError, match=r"region_batch.images=-8 is negative"):
        RegionBatchConfig(images=-8)
    with pytest.raises(InputError, match=r"regions_per_image=0 is less than 1"):
        RegionBatchConfig(images=8, regions_per_image=0)


def test_boxes_that_a_crop_may_cut_away_are_refused():
    config = make_config()
    data = dataclasses.replace(config.data, augment=AugmentConfig(crop_area=0.2))
    assert dataclasses.replace(config, data=data).item_batch().data.augment.crop_area == 0.2
    data = dataclasses.replace(data, region_batch=RegionBatchConfig())
    with pytest.raises(InputError, match=r"crop_area, .* may cut away the item whose box is"):
        dataclasses.replace(config, data=data)
    no_boxes = dataclasses.replace(LOSS, box_l1=0.0, box_giou=0.0)
    assert dataclasses.replace(config, data=data, loss=no_boxes).item_batch().loss == no_boxes


@pytest.mark.parametrize(
    "regions, group, message",
    [
        ({"images": 12}, 2, r"region_batch.images=12 does not divide .* make it a multiple of 8"),
        ({"images": 16, "regions_per_image": 3}, 4, "the 6 items of each of 8 parts of the region"),
    ],
)
def test_sizes_that_do_not_fit_the_mesh_are_refused(regions, group, message):
    config = make_config()
    data = dataclasses.replace(config.data, region_batch=RegionBatchConfig(**regions))
    loss = dataclasses.replace(LOSS, itm=1.0, matching_group=group)
    config = dataclasses.replace(config, batch_size=64, data=data, loss=loss)
    with pytest.raises(InputError, match=message):
        _check_divisible(config, 8)


def test_a_step_counts_the_pictures_of_both_batches():
    assert BOTH.images == make_config().images_per_step == B + PICTURES
    assert ITEMS.images == make_config().item_batch().images_per_step == B
