"""Relative positions, patches and regions of the vision encoder."""

import numpy as np
import pytest

from capret_jax.config import SIZES
from capret_jax.models.beit import (
    _patchify,
    box_regions,
    pool_boxes,
    pool_regions,
    region_mask,
    relative_position_index,
)


def test_relative_position_index_of_a_2x2_grid():
    # (2g-1) = 3 columns; offset (dy, dx) -> (dy+1)*3 + dx+1; cls rows 9, 10, 11.
    expected = [
        [11, 9, 9, 9, 9],
        [10, 4, 3, 1, 0],
        [10, 5, 4, 2, 1],
        [10, 7, 6, 4, 3],
        [10, 8, 7, 5, 4],
    ]
    np.testing.assert_array_equal(relative_position_index(2), expected)


def test_relative_position_index_is_the_reference_buffer(golden_state):
    name = "vision_encoder.blocks.0.attn.relative_position_index"
    np.testing.assert_array_equal(relative_position_index(SIZES["tiny"].grid), golden_state[name])


def test_patches_are_row_major_tiles():
    image = np.arange(32 * 48 * 3).reshape(1, 32, 48, 3)
    patches = np.asarray(_patchify(image)).reshape(1, 2, 3, 16, 16, 3)
    np.testing.assert_array_equal(patches[0, 1, 2], image[0, 16:32, 32:48])


@pytest.mark.parametrize(
    "box, rows, columns",
    [
        ((0, 0, 64, 64), (0, 4), (0, 4)),
        ((16, 32, 32, 48), (2, 3), (1, 2)),  # exactly one patch
        ((15, 31, 33, 49), (1, 4), (0, 3)),  # overlaps its neighbours
        ((20, 20, 20, 20), (1, 2), (1, 2)),  # no area: still one patch
        ((64, 64, 64, 64), (3, 4), (3, 4)),  # at the far edge
    ],
)
def test_region_mask_covers_overlapped_patches(box, rows, columns):
    mask = np.asarray(region_mask(np.array([box], np.float32), 4))
    expected = np.zeros((4, 4))
    expected[slice(*rows), slice(*columns)] = 1
    assert mask[0, 0] == 1
    np.testing.assert_array_equal(mask[0, 1:].reshape(4, 4), expected)


def test_boxes_are_pooled_like_regions():
    rng = np.random.default_rng(0)
    image, boxes = rng.normal(size=(2, 17, 3)), rng.uniform(0.1, 0.6, (6, 4))
    image, boxes = image.astype(np.float32), boxes.astype(np.float32)
    regions, _ = box_regions(image, boxes)
    np.testing.assert_allclose(pool_boxes(image, boxes), regions[:, :1], rtol=1e-5, atol=1e-6)


def test_pooling_a_region_is_the_mean_of_its_patches():
    image = np.random.default_rng(0).normal(size=(1, 5, 3)).astype(np.float32)
    pooled = np.asarray(pool_regions(image, np.array([[1, 0, 1, 1, 0]], np.float32)))
    np.testing.assert_allclose(pooled[0, 0], image[0, 2:4].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(pooled[0, 1:], image[0, 1:])
