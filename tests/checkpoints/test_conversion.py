"""Conversion of the golden files to JAX parameters and back."""

import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from capret_jax.checkpoints.conversion import from_reference, to_reference
from capret_jax.checkpoints.state_dict import read_state_dict
from capret_jax.config import SIZES
from capret_jax.errors import InputError
from tests.conftest import DATA

FRESH = {
    "pretrain": [],
    "vqa": ["bbox_head", "itm_head", "mlm_head", "temperature", "text_proj", "vision_proj"],
    "caption": ["bbox_head", "itm_head", "temperature", "text_proj", "vision_proj"],
}


@pytest.fixture(scope="module", params=FRESH)
def golden_file(request):
    return request.param, read_state_dict(DATA / f"x2vlm_tiny_{request.param}.th")


@pytest.fixture(scope="module")
def converted(golden_file):
    return from_reference(golden_file[1])


def test_parameters_that_the_file_lacks_are_fresh_and_reported(golden_file, converted):
    missing = converted.report.missing.values()
    assert sorted({path.split("/")[0] for path in missing}) == FRESH[golden_file[0]]
    arrays = flatten_dict(converted.params, sep="/")
    converted_paths = {path for paths in converted.report.used.values() for path in paths}
    assert converted_paths | set(missing) == arrays.keys()
    kernels = [arrays[path] for path in missing if path.endswith("kernel")]
    assert all(0.01 < kernel.std() < 1 for kernel in kernels)


def test_the_export_is_exact(golden_file, converted):
    state, kind = golden_file[1], converted.report.kind
    exported = to_reference(converted.params, converted.config, kind, converted.retained)
    assert exported.keys() == state.keys()
    for name, array in state.items():
        assert (exported[name].dtype, exported[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(exported[name], array, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_are_accepted_and_reported(golden_state, dtype):
    state = {
        name: array.astype(dtype) if array.dtype == np.float32 else array
        for name, array in golden_state.items()
    }
    converted = from_reference(state)
    name = np.dtype(dtype).name
    rounding = "by rounding" if dtype is np.float64 else "exactly"
    assert converted.report.notes == [f"164 tensors of {name} were converted to float32 {rounding}"]
    token = converted.params["vision"]["cls_token"]
    assert token.dtype == np.float32
    expected = state["vision_encoder.cls_token"].reshape(-1).astype(np.float32)
    np.testing.assert_array_equal(token, expected)


def test_a_tied_tensor_with_other_values_is_reported_and_retained(golden_state):
    name = "text_encoder.cls.predictions.decoder.weight"
    other = golden_state[name] + 1
    converted = from_reference(golden_state | {name: other})
    assert name in converted.report.notes[0]
    exported = to_reference(converted.params, converted.config, "pretrain", converted.retained)
    np.testing.assert_array_equal(exported[name], other)


def test_parts_that_a_kind_does_not_have_are_left_out(golden_params):
    exported = to_reference(golden_params, SIZES["tiny"], "retrieval")
    assert not any(name.startswith(("bbox_head", "text_encoder.cls")) for name in exported)
    assert "text_encoder.embeddings.word_embeddings.weight" in exported


def test_parts_that_a_model_does_not_have_are_not_exported(golden_params):
    with pytest.raises(InputError, match="a vqa checkpoint has a decoder"):
        to_reference(golden_params, SIZES["tiny"], "vqa")


def test_files_of_another_family_are_refused(golden_state):
    with pytest.raises(InputError, match=r"no vision_encoder\.blocks"):
        from_reference({"weight": np.zeros(3, np.float32)})
    beit = {"cls_token": np.zeros((1, 1, 64), np.float32)}
    with pytest.raises(InputError, match="needs --bert=FILE"):
        from_reference(beit)


def test_an_unknown_size_is_refused(golden_state):
    wide = {
        name: np.zeros((80, *array.shape[1:]), np.float32) if "norm1" in name else array
        for name, array in golden_state.items()
    }
    with pytest.raises(InputError, match="width 80 is of no known size .*base 768"):
        from_reference(wide)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_of_a_training_that_diverged_are_refused(golden_state, value):
    name = "vision_encoder.blocks.0.mlp.fc1.weight"
    broken = golden_state[name].copy()
    broken[0, :2] = value
    with pytest.raises(InputError, match=rf"{name} has 2 NaN or infinite values"):
        from_reference(golden_state | {name: broken})


def test_quantised_weights_are_refused(golden_state):
    name = "vision_encoder.blocks.0.mlp.fc1.weight"
    quantised = golden_state[name].astype(ml_dtypes.float8_e4m3fn)
    with pytest.raises(InputError, match=rf"{name} has dtype float8_e4m3fn where float16 or"):
        from_reference(golden_state | {name: quantised})
