"""Interpolated tables, compared with those of the reference implementation."""

import numpy as np
import pytest

from capret_jax.checkpoints.relative_position import interpolate_bias_table, with_image_size
from capret_jax.config import SIZES
from capret_jax.errors import InputError
from tests.conftest import DATA


@pytest.mark.parametrize("block", range(3))
def test_tables_at_96_pixels_equal_the_reference(golden_state, block):
    expected = np.load(DATA / "x2vlm_tiny_pretrain_at96.npz")[f"bias_table_{block}"]
    name = f"vision_encoder.blocks.{block}.attn.relative_position_bias_table"
    np.testing.assert_allclose(interpolate_bias_table(golden_state[name], 6), expected, atol=1e-6)


def test_a_table_of_the_same_size_is_kept(golden_state):
    table = golden_state["vision_encoder.blocks.0.attn.relative_position_bias_table"]
    np.testing.assert_array_equal(interpolate_bias_table(table, 4), table)


def test_a_table_of_a_grid_that_is_not_square_is_refused():
    with pytest.raises(InputError, match="50 rows"):
        interpolate_bias_table(np.zeros((50, 4)), 4)


@pytest.mark.parametrize("source, target", [(1, 4), (2, 4), (2, 1), (4, 1), (3, 24)])
def test_a_constant_table_stays_constant_at_any_size(source, target):
    table = np.full(((2 * source - 1) ** 2 + 3, 2), 0.25, np.float32)
    table[-3:] = 7
    resized = interpolate_bias_table(table, target)
    assert resized.shape == ((2 * target - 1) ** 2 + 3, 2)
    np.testing.assert_allclose(resized[:-3], 0.25, rtol=1e-6)
    assert (resized[-3:] == 7).all()


def test_only_the_tables_change(golden_params):
    resized, config = with_image_size(golden_params, SIZES["tiny"], 32)
    assert config.image_size == 32
    attention = resized["vision"]["blocks"]["0"]["attention"]
    assert attention["relative_position_bias"].shape == (3 * 3 + 3, 4)
    assert resized["vision"]["cls_token"] is golden_params["vision"]["cls_token"]


@pytest.mark.parametrize("size", [0, 40, -16])
def test_an_impossible_image_size_is_refused(golden_params, size):
    with pytest.raises(InputError, match=f"image_size={size}"):
        with_image_size(golden_params, SIZES["tiny"], size)
