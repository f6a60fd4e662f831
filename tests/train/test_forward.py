"""Regions through the model: the effect of pooling, masks and padding on the losses."""

import dataclasses

import jax
import numpy as np
import pytest

from capret_jax.config import DataConfig, LossConfig, MeshConfig, ViewConfig
from capret_jax.data.batch import IGNORED_LABEL, NO_IDENTITY
from capret_jax.distributed.mesh import make_mesh
from capret_jax.train.metrics import merge
from capret_jax.train.state import make_params
from capret_jax.train.step import make_loss
from tests.small_model import SMALL_MODEL
from tests.train.test_step import CLASSES, make_batch, make_setup

# Without ITM, since hard negatives depend on the order of the batch.
LOSS = LossConfig(mlm=1.0, itm=0.0)


@pytest.fixture(scope="module")
def metrics_of():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = jax.jit(make_params, static_argnums=(0, 1))(SMALL_MODEL, CLASSES, jax.random.key(0))

    def run(batch, regions):
        view = ViewConfig("region" if regions else "crop")
        setup = make_setup(mesh, loss=LOSS, data=DataConfig(view=view))
        loss = jax.jit(make_loss(setup))
        return merge([loss(params, batch, jax.random.key(1))[1].metrics])

    return run


def pad(batch):
    """Adds an invalid second item to each picture, with values that must not matter."""

    def widen(x, filler):
        return np.stack([x, np.broadcast_to(np.asarray(filler, x.dtype), x.shape)], 1).reshape(
            -1, *x.shape[1:]
        )

    fillers = {
        "identity": NO_IDENTITY,
        "valid": False,
        "box": 0.1,
        "caption_id": 3,
        "token_ids": 7,
        "token_mask": 1,
        "masked_ids": 9,
        "masked_positions": 1,
        "masked_labels": IGNORED_LABEL,
    }
    changed = {name: widen(getattr(batch, name), filler) for name, filler in fillers.items()}
    return dataclasses.replace(batch, **changed)


@pytest.fixture(scope="module")
def batch():
    """A batch with boxes in the upper left quarter."""
    batch = make_batch(0)
    return dataclasses.replace(batch, box=np.full((16, 4), [0.3, 0.3, 0.3, 0.3], np.float32))


@pytest.fixture(scope="module")
def regions(metrics_of, batch):
    return metrics_of(batch, True)


def test_padding_items_change_no_loss(metrics_of, batch, regions):
    assert metrics_of(pad(batch), True) == pytest.approx(regions, rel=1e-5)


def test_a_region_of_the_whole_picture_equals_the_picture(metrics_of, batch, regions):
    everything = dataclasses.replace(batch, box=np.full((16, 4), [0.5, 0.5, 1, 1], np.float32))
    whole = metrics_of(everything, False)
    assert metrics_of(everything, True) == pytest.approx(whole, rel=1e-5)
    assert regions["loss/arcface"] != pytest.approx(whole["loss/arcface"], rel=1e-3)
    # Boxes are predicted from the whole picture, so the box loss differs by its target alone.
    other_target = metrics_of(dataclasses.replace(everything, box=batch.box), False)
    assert regions["loss/box_l1"] == pytest.approx(other_target["loss/box_l1"], rel=1e-5)
