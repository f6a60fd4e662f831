"""Reading the reference's files: complete, or refused with the culprit's name."""

import dataclasses
import zipfile

import numpy as np
import pytest

from capret_jax.convert.relative_position import interpolate_bias_table
from capret_jax.convert.torch_file import from_reference, read_state_dict
from capret_jax.errors import InputError
from capret_jax.models.config import SIZES
from tests.conftest import DATA


@pytest.mark.parametrize("block", range(3))
def test_tables_at_96_pixels_equal_the_reference(golden_state, block):
    expected = np.load(DATA / "x2vlm_tiny_pretrain_at96.npz")[f"bias_table_{block}"]
    name = f"vision_encoder.blocks.{block}.attn.relative_position_bias_table"
    np.testing.assert_allclose(interpolate_bias_table(golden_state[name], 6), expected, atol=1e-6)


def test_a_table_of_its_own_size_is_kept(golden_state):
    table = golden_state["vision_encoder.blocks.0.attn.relative_position_bias_table"]
    np.testing.assert_array_equal(interpolate_bias_table(table, 4), table)


def test_a_table_of_no_square_grid_is_refused():
    with pytest.raises(InputError, match="50 rows"):
        interpolate_bias_table(np.zeros((50, 4)), 4)


@pytest.mark.parametrize("name", ["temp", "vision_proj.weight", "itm_head.3.bias"])
def test_a_missing_name_is_refused(golden_state, name):
    state = {key: value for key, value in golden_state.items() if key != name}
    with pytest.raises(InputError, match=f"missing {name}"):
        from_reference(state, SIZES["tiny"])


def test_an_unknown_name_is_refused(golden_state):
    with pytest.raises(InputError, match=r"unexpected extra\.weight"):
        from_reference(golden_state | {"extra.weight": np.zeros(3)}, SIZES["tiny"])


def test_another_shape_is_refused(golden_state):
    config = dataclasses.replace(SIZES["tiny"], embed_dim=16)
    with pytest.raises(InputError, match=r"vision_proj.weight has shape \(32, 64\)"):
        from_reference(golden_state, config)


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    text = tmp_path / "notes.th"
    text.write_text("not a checkpoint")
    with pytest.raises(InputError, match=r"notes\.th"):
        read_state_dict(text)
    empty = tmp_path / "empty.th"
    with zipfile.ZipFile(empty, "w"):
        pass
    with pytest.raises(InputError, match=r"empty\.th"):
        read_state_dict(empty)
    with pytest.raises(InputError, match=r"absent\.th"):
        read_state_dict(tmp_path / "absent.th")
