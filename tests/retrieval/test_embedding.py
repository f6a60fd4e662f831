"""Embeddings of items: crops, whole photographs and regions, with and without vision tokens."""

import jax
import numpy as np
import pytest

from capret_jax.config import ComputeConfig, MeshConfig, ViewConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.models.beit import pool_regions, region_mask
from capret_jax.models.x2vlm import abstract_model, bind, init_params, normalize_pixels
from capret_jax.retrieval.embedding import Embedder, PictureBatch
from tests.small_model import SMALL_MODEL

SIZE, ITEMS = 32, 2


@pytest.fixture(scope="module")
def params():
    return jax.jit(init_params, static_argnums=0)(SMALL_MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def model(params):
    return bind(abstract_model(SMALL_MODEL)[0], params)


@pytest.fixture(scope="module")
def pictures() -> PictureBatch:
    """Eight pictures, one for each device, of two items each."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
    boxes = rng.uniform(0.2, 0.8, (8, ITEMS, 4)).astype(np.float32)
    return PictureBatch.without_captions(image, boxes)


def embedder(kind: str) -> Embedder:
    compute = ComputeConfig().on("cpu")
    return Embedder(SMALL_MODEL, ViewConfig(kind), compute, make_mesh(MeshConfig()))


def test_whole_images_give_all_their_items_one_embedding(params, model, pictures):
    features = embedder("image").embed(params, pictures)
    states = model.encode_image(normalize_pixels(pictures.image))
    for item in range(ITEMS):
        np.testing.assert_allclose(features[:, item], model.image_features(states), atol=2e-5)
    assert not np.allclose(features[0], features[1], atol=1e-3)


def test_regions_are_pooled_from_one_picture(params, model, pictures):
    encoded = embedder("region").encode(params, pictures)
    states = model.encode_image(normalize_pixels(pictures.image[:1]))
    boxes = pictures.boxes[0]
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    mask = region_mask(corners * SIZE, SIZE // 16)
    regions = pool_regions(states[np.zeros(ITEMS, int)], mask)
    np.testing.assert_allclose(encoded.features[0], model.image_features(regions), atol=2e-5)
    np.testing.assert_allclose(encoded.states[0], regions, atol=2e-3)
    np.testing.assert_array_equal(encoded.mask[0], mask > 0)
    assert encoded.states.dtype == np.float16


@pytest.mark.parametrize("kind", ["crop", "region"])
def test_vision_tokens_change_no_embedding(params, pictures, kind):
    embed = embedder(kind)
    encoded = embed.encode(params, pictures)
    np.testing.assert_allclose(encoded.features, embed.embed(params, pictures), atol=1e-6)
    assert encoded.mask.all() == (kind == "crop")
