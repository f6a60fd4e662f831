"""State dicts in PyTorch's zip format and safetensors."""

import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from capret_jax.checkpoints.state_dict import FORMATS, read_state_dict, write_state_dict
from capret_jax.checkpoints.torch_file import write_torch_file
from capret_jax.errors import InputError


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_written_state_dict_is_read_again(file_format, tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    state = {
        "transposed": matrix.T,
        "scalar": np.full((), 0.07, np.float32),
        "half": matrix.astype(np.float16),
        "brain": matrix.astype(ml_dtypes.bfloat16),
        "index": np.arange(3),
    }
    write_state_dict(tmp_path / "x", state, file_format)
    read = read_state_dict(tmp_path / "x")
    assert read.keys() == state.keys()
    for name, array in state.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read[name], array)


def test_tied_tensors_that_safetensors_left_out_are_restored(tmp_path):
    table = np.ones((2, 3), np.float32)
    metadata = {"decoder.weight": "table.weight", "format": "pt"}
    safetensors.numpy.save_file({"table.weight": table}, tmp_path / "x", metadata=metadata)
    read = read_state_dict(tmp_path / "x")
    assert read.keys() == {"table.weight", "decoder.weight"}
    np.testing.assert_array_equal(read["decoder.weight"], table)


def test_a_safetensors_file_cut_short_is_refused(tmp_path):
    safetensors.numpy.save_file({"w": np.ones(100, np.float32)}, tmp_path / "x")
    (tmp_path / "cut").write_bytes((tmp_path / "x").read_bytes()[:-8])
    with pytest.raises(InputError, match="cut is not a whole safetensors file"):
        read_state_dict(tmp_path / "cut")


def test_a_file_without_tensors_is_refused(tmp_path):
    with pytest.raises(InputError, match="absent cannot be read"):
        read_state_dict(tmp_path / "absent")
    with pytest.raises(InputError, match="cannot be read"):
        read_state_dict(tmp_path)
    write_torch_file(tmp_path / "none", {})
    with pytest.raises(InputError, match="no state dict"):
        read_state_dict(tmp_path / "none")


def test_quantised_safetensors_are_refused(tmp_path):
    header = b'{"w":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(InputError, match="is quantised: w has dtype F8_E4M3"):
        read_state_dict(path)
