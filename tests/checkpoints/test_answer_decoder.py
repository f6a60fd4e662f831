"""The VQA decoder that starts from the encoders of a checkpoint without one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from capret_jax.checkpoints.answer_decoder import (
    decoder_layer_sources,
    decoder_sources,
    describe_copies,
)
from capret_jax.checkpoints.conversion import from_reference
from capret_jax.checkpoints.converted import save_converted
from capret_jax.checkpoints.initialization import (
    fresh_parameters,
    initial_params,
    initialised_parameters,
    parameter_paths,
)
from capret_jax.checkpoints.state_dict import read_state_dict
from capret_jax.config import SIZES, MeshConfig, check_same_shapes
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import abstract_model
from tests.conftest import DATA

TINY = SIZES["tiny"]
TWO_LAYERS = dataclasses.replace(TINY, decoder_layers=2)
COPIED = {"decoder/layers/0/norm/scale": "fusion/layers/1/norm/scale"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A converted checkpoint without a decoder."""
    folder = tmp_path_factory.mktemp("start") / "pretrain"
    save_converted(folder, from_reference(read_state_dict(DATA / "x2vlm_tiny_pretrain.th")))
    return folder


def start_from(folder, model):
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract_model(model)[1])
    return initial_params(folder, zeros, model, make_mesh(MeshConfig()))


def address(array):
    return array.addressable_shards[0].data.unsafe_buffer_pointer()


def test_layers_embeddings_and_head_are_those_of_the_text_encoder(pretrained):
    start = start_from(pretrained, TWO_LAYERS)
    params = flatten_dict(start.params, sep="/")
    copies = 0
    for path, value in params.items():
        if not path.startswith("decoder/"):
            continue
        if "cross_attention/key" in path or "cross_attention/value" in path:
            # The image is 64 wide, and the text 48.
            assert not np.any(value), path
            continue
        origin = path.replace("decoder/layers/", "fusion/layers/")
        origin = origin.replace("decoder/embeddings/", "text/embeddings/")
        origin = origin.replace("decoder/head/", "mlm_head/")
        np.testing.assert_array_equal(value, params[origin], err_msg=path)
        assert address(value) != address(params[origin])  # a training step donates each of them
        copies += 1
    assert copies == 2 * 22 + 5 + 5
    assert start.copies == (
        "decoder layers 0-1 from text-encoder layers 2-3, "
        "decoder embeddings and head from the text encoder"
    )
    assert start.fresh == ["decoder's cross-attention keys and values"]


def test_keys_and_values_start_too_where_the_widths_agree():
    model = dataclasses.replace(TINY, vision_width=48, decoder_layers=2)
    sources = decoder_sources(model, parameter_paths(model))
    assert sources.keys() == {p for p in parameter_paths(model) if p.startswith("decoder/")}
    name = "layers/1/cross_attention/key/kernel"
    assert sources[f"decoder/{name}"] == f"fusion/{name}"


@pytest.mark.parametrize(
    ("layers", "sources"),
    [(6, [12, 13, 14, 15, 16, 17]), (3, [13, 15, 17]), (4, [12, 13, 14, 15]), (0, [])],
)
@pytest.mark.parametrize("size", ["base", "large"])
def test_published_sizes_take_the_layers_of_the_reference(size, layers, sources):
    model = dataclasses.replace(SIZES[size], decoder_layers=layers)
    assert [model.text_layers + i for i in decoder_layer_sources(model)] == sources


def test_half_as_many_layers_are_every_second_one_and_this_is_said(pretrained):
    start = start_from(pretrained, dataclasses.replace(TINY, decoder_layers=1))
    decoder, fusion = (start.params[part]["layers"] for part in ("decoder", "fusion"))
    np.testing.assert_array_equal(decoder["0"]["norm"]["scale"], fusion["1"]["norm"]["scale"])
    said = describe_copies(dataclasses.replace(SIZES["base"], decoder_layers=3), COPIED)
    assert said.startswith("decoder layers 0-2 from text-encoder layers 13, 15, 17 (half as many")


def test_layers_without_a_source_stay_fresh_and_are_named(pretrained):
    start = start_from(pretrained, dataclasses.replace(TINY, decoder_layers=3))
    assert start.copies.startswith("decoder layers 0-1 from text-encoder layers 2-3,")
    assert start.fresh == ["decoder's cross-attention keys and values", "decoder/layers"]


def test_copies_have_not_learnt_to_answer(pretrained):
    untrained = fresh_parameters(pretrained, TWO_LAYERS)
    assert {path.split("/")[0] for path in untrained} == {"decoder"}
    kept = initialised_parameters(pretrained, TWO_LAYERS)
    assert not any(path.startswith("decoder/") for path in kept)


def test_a_decoder_of_another_depth_is_refused():
    check_same_shapes(TWO_LAYERS, TINY, "pretrain")
    check_same_shapes(TINY, TWO_LAYERS, "vqa")
    three = dataclasses.replace(TINY, decoder_layers=3)
    with pytest.raises(InputError, match="decoder_layers=3 does not fit .*vqa, which has 2"):
        check_same_shapes(three, TWO_LAYERS, "vqa")


def test_frame_positions_may_be_dropped_and_not_invented():
    video = dataclasses.replace(TINY, frames=3)
    check_same_shapes(TINY, video, "stage2")
    with pytest.raises(InputError, match="frames=3 does not fit .*pretrain, which has 0"):
        check_same_shapes(video, TINY, "pretrain")
