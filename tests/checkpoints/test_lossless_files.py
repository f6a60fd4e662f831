"""Files that lack names without loss, hold optional parts, or belong to another family."""

import numpy as np
import pytest

from capret_jax.checkpoints.conversion import from_reference, match_reference, to_reference
from capret_jax.errors import InputError
from tests.checkpoints.test_manifests import MANIFESTS, TIES, placeholders

BUFFERS = ("position_ids", "relative_position_index", "one_hot")


def state_of(manifest: str) -> dict[str, np.ndarray]:
    return placeholders(MANIFESTS[manifest])


def without(state: dict, *endings: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in state.items() if not name.endswith(endings)}


def exported(matched) -> dict[str, np.ndarray]:
    return to_reference(matched.params, matched.config, matched.report.kind, matched.retained)


@pytest.mark.parametrize("manifest", ["pretrain_base_224", "vqa_base_768", "caption_mlm_large_384"])
def test_buffers_and_tied_copies_may_be_absent(manifest):
    state = state_of(manifest)
    dropped = state.keys() - without(state, *BUFFERS, *TIES).keys()
    matched = match_reference(without(state, *BUFFERS, *TIES))
    assert matched.report.absent.keys() == dropped
    assert matched.report.kind == manifest.rsplit("_", 2)[0]
    assert not matched.report.ignored and "nothing is lost" in matched.report.summary()
    # An export has them again, but for the buffer of a loss.
    back = exported(matched)
    assert state.keys() - back.keys() == {name for name in dropped if name.endswith("one_hot")}
    for name, array in back.items():
        assert (array.shape, array.dtype) == (state[name].shape, state[name].dtype), name
        assert array.flat[-1] == state[name].flat[-1], name


@pytest.mark.parametrize("copy", TIES)
def test_either_of_two_tied_tensors_may_be_absent(copy):
    state = state_of("pretrain_base_224")
    source = f"text_encoder.{TIES[copy]}"
    matched = match_reference({name: array for name, array in state.items() if name != source})
    report, copy = matched.report, f"text_encoder.{copy}"
    assert report.absent == {source: f"taken from {copy}, which is tied to it"}
    assert copy in report.used and copy not in report.ignored and source not in report.used
    assert exported(matched).keys() == state.keys()
    assert exported(matched)[source].flat[0] == state[source].flat[0]
    both = {name: array for name, array in state.items() if name not in (source, copy)}
    with pytest.raises(InputError, match=f": missing {source}"):
        match_reference(both)


def test_a_prefix_of_all_names_is_left_out():
    state = state_of("grounding_base_384")
    matched = match_reference({f"module.{name}": array for name, array in state.items()})
    assert matched.report.notes == ["every name starts with module., which is left out here"]
    assert exported(matched).keys() == state.keys()
    mixed = {name: a for name, a in state.items() if name != "bbox_head.0.bias"}
    with pytest.raises(InputError, match=r"missing bbox_head.0.bias; unexpected module\.bbox"):
        match_reference(mixed | {"module.bbox_head.0.bias": state["bbox_head.0.bias"]})


def test_a_retrieval_file_may_have_had_a_constant_temperature():
    state = state_of("retrieval_base_384")
    del state["temp"]
    matched = match_reference(state)
    assert matched.report.kind == "retrieval"
    assert matched.report.absent == {"temp": "a constant of the training (fix_temp): 0.07 is used"}
    assert matched.params["temperature"] == np.float32(0.07)
    assert not matched.report.missing
    assert exported(matched)["temp"] == np.float32(0.07)


@pytest.mark.parametrize("frames", [3, 8])
def test_a_retrieval_file_may_have_frame_positions(frames):
    positions = np.arange(frames * 768, dtype=np.float32).reshape(1, frames, 1, 768)
    state = state_of("retrieval_base_384") | {"absolute_frame_pos_embed": positions}
    matched = match_reference(state)
    assert (matched.report.kind, matched.config.frames) == ("retrieval", frames)
    assert matched.report.used["absolute_frame_pos_embed"] == ["frame_positions"]
    assert f"the positions of {frames} frames" in matched.report.notes[0]
    np.testing.assert_array_equal(matched.params["frame_positions"], positions[0, :, 0])
    back = exported(matched)
    assert back.keys() == state.keys()
    np.testing.assert_array_equal(back["absolute_frame_pos_embed"], positions)


@pytest.mark.parametrize("shape", [(1, 3, 1, 64), (3, 768), (1, 3, 2, 768), (2, 3, 1, 768)])
def test_frame_positions_of_another_shape_are_refused(shape):
    positions = np.zeros(shape, np.float32)
    with pytest.raises(InputError, match="absolute_frame_pos_embed has shape .* is needed"):
        match_reference(state_of("retrieval_base_384") | {"absolute_frame_pos_embed": positions})


def test_frame_positions_are_no_part_of_a_stage_1_file():
    state = state_of("pretrain_stage2_base_224")
    with pytest.raises(InputError, match=r"unexpected absolute_frame_pos_embed \(1, 3, 1, 768\)"):
        match_reference(state, "pretrain")
    matched = match_reference(state)
    stage_1 = to_reference(matched.params, matched.config, "pretrain")
    assert state.keys() - stage_1.keys() == {"absolute_frame_pos_embed"}


def test_positions_that_older_versions_retained_are_exported():
    state = state_of("pretrain_stage2_base_224")
    positions = state.pop("absolute_frame_pos_embed")
    older = match_reference(state)
    retained = {"absolute_frame_pos_embed": positions}
    back = to_reference(older.params, older.config, "pretrain_stage2", retained)
    assert back.keys() == state.keys() | retained.keys()
    assert "absolute_frame_pos_embed" not in to_reference(older.params, older.config, "pretrain")
    with pytest.raises(InputError, match="has a frame_positions, which this model does not have"):
        to_reference(older.params, older.config, "pretrain_stage2")


def test_a_shallower_answer_decoder_has_the_depth_of_the_file():
    state = without(state_of("vqa_base_768"), *BUFFERS)
    layers = tuple(f"text_decoder.bert.encoder.layer.{i}." for i in (3, 4, 5))
    shallow = {name: array for name, array in state.items() if not name.startswith(layers)}
    matched = match_reference(shallow)
    assert matched.config.decoder_layers == 3
    assert "the answer decoder has 3 layers" in matched.report.notes[0]
    assert without(exported(matched), *BUFFERS).keys() == shallow.keys()
    # A gap is no end.
    gap = {name: array for name, array in state.items() if not name.startswith(layers[:1])}
    with pytest.raises(InputError, match=r"unexpected text_decoder\.bert\.encoder\.layer\.4"):
        match_reference(gap)
    bare = {n: a for n, a in state.items() if "text_decoder.bert.encoder.layer." not in n}
    with pytest.raises(InputError, match=r"missing text_decoder\.bert\.encoder\.layer\.0"):
        match_reference(bare, "vqa")


def weight(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.float32(0), shape)


def nlvr2() -> dict[str, np.ndarray]:
    head = {"0.weight": (3072, 1536), "0.bias": (3072,), "1.weight": (3072,), "1.bias": (3072,)}
    head |= {"3.weight": (2, 3072), "3.bias": (2,)}
    state = without(state_of("grounding_base_384"), ".bias")
    return state | {f"cls_head.{name}": weight(*shape) for name, shape in head.items()}


def cclm() -> dict[str, np.ndarray]:
    name = "text_encoder.embeddings.word_embeddings.weight"
    return state_of("retrieval_base_384") | {name: weight(250_002, 768)}


FAMILIES = {
    "NLVR2, whose head compares two images": nlvr2(),
    "CCLM, whose text encoder is XLM-R": cclm(),
    "CCLM, whose text encoder is": {
        "vision_encoder.blocks.0.norm1.weight": weight(768),
        "text_encoder.roberta.embeddings.LayerNorm.bias": weight(768),
    },
    "X-VLM, whose vision encoder is a Swin": {
        "vision_encoder.layers.0.blocks.0.norm1.weight": weight(128),
        "text_encoder.embeddings.word_embeddings.weight": weight(30522, 768),
    },
    "X-VLM with CLIP-ViT as its vision encoder": {
        "vision_encoder.encoder.layers.0.self_attn.q_proj.weight": weight(768, 768),
    },
    "a classifier, such as": state_of("grounding_base_384") | {"cls_head.0.weight": weight(9, 768)},
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_refused_by_name(family, prefix):
    state = {f"{prefix}{name}": array for name, array in FAMILIES[family].items()}
    with pytest.raises(InputError, match=f"this is a checkpoint of {family}") as error:
        match_reference(state)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_a_model_of_a_golden_file_without_buffers_is_the_same(golden_state, golden_params):
    stripped = without(golden_state, *BUFFERS, *TIES)
    params = from_reference(stripped).params
    for part in ("vision", "text", "fusion"):
        np.testing.assert_equal(params[part], golden_params[part])
