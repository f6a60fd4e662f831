"""Names and shapes of all published kinds, base and large, at full size but without the bytes."""

import gzip
import json

import numpy as np
import pytest

from capret_jax.convert.names import KINDS
from capret_jax.convert.reference import match_reference, to_reference
from capret_jax.errors import InputError
from capret_jax.models.vision import relative_position_index
from tests.conftest import DATA

MANIFESTS = json.loads(gzip.decompress((DATA / "checkpoint_keys.json.gz").read_bytes()))


def placeholder(name: str, shape: list[int]) -> np.ndarray:
    """An array of this shape that takes no memory; buffers have their values."""
    if name.endswith("position_ids"):
        return np.arange(shape[1])[None]
    if name.endswith("relative_position_index"):
        return relative_position_index(round((shape[0] - 1) ** 0.5))
    return np.broadcast_to(np.float32(0), tuple(shape))


@pytest.fixture(scope="module", params=MANIFESTS)
def manifest(request):
    return request.param


@pytest.fixture(scope="module")
def state(manifest):
    return {name: placeholder(name, shape) for name, shape in MANIFESTS[manifest].items()}


@pytest.fixture(scope="module")
def matched(state):
    return match_reference(state)


def some(state: dict, count: int = 7) -> list[str]:
    """Names from all over a file, never the one that makes a stage-1 file of a stage-2 one."""
    names = [name for name in state if name != "absolute_frame_pos_embed"]
    return names[:: len(names) // (count - 1)] + names[-1:]


def test_every_name_is_accounted_for(manifest, state, matched):
    report, (kind, size, pixels) = matched.report, manifest.rsplit("_", 2)
    assert (report.kind, report.size, report.image_size) == (kind, size, int(pixels))
    assert report.used.keys() | report.ignored.keys() == state.keys()
    assert not report.used.keys() & report.ignored.keys()
    assert matched.carried.keys() == KINDS[kind].extras.keys()
    assert not report.notes


def test_only_buffers_ties_and_extras_are_ignored(matched):
    expected = ("position_ids", "position_index", "decoder.weight", "decoder.bias")
    extras = ("absolute_frame_pos_embed", "crit_mask_lm_smoothed.one_hot")
    assert all(name.endswith(expected) or name in extras for name in matched.report.ignored)


def test_the_way_back_has_the_same_names_and_shapes(state, matched):
    back = to_reference(matched.params, matched.config, matched.report.kind, matched.carried)
    shapes = {name: array.shape for name, array in back.items()}
    assert shapes == {name: array.shape for name, array in state.items()}


def test_a_dropped_name_is_refused(state):
    for name in some(state):
        with pytest.raises(InputError, match=f": missing {name}( \\(.*\\))?\\.$"):
            match_reference({key: array for key, array in state.items() if key != name})


def test_an_added_name_is_refused(state):
    for name in ("extra.weight", "vision_encoder.blocks.99.gamma_1", "pooler.dense.bias"):
        with pytest.raises(InputError, match=rf": unexpected {name} \(3,\)\.$"):
            match_reference(state | {name: np.zeros(3, np.float32)})


def test_a_renamed_name_is_refused(state):
    for name in some(state):
        renamed = {f"{key}_" if key == name else key: array for key, array in state.items()}
        with pytest.raises(InputError, match=f"missing {name}.*; unexpected {name}_"):
            match_reference(renamed)


def test_another_shape_is_refused(state):
    for name in some(state):
        for shape in ((*state[name].shape, 1), (2, *state[name].shape[1:], 5)):
            other = np.broadcast_to(np.float32(0), shape)
            with pytest.raises(InputError, match=f": {name} has shape .* is needed\\.$"):
                match_reference(state | {name: other})


def test_integers_are_refused_where_weights_belong(state):
    name = "vision_encoder.cls_token"
    with pytest.raises(InputError, match=f"{name} has dtype int32"):
        match_reference(state | {name: np.zeros(state[name].shape, np.int32)})


def test_a_kind_may_be_insisted_on(manifest, state):
    other = "grounding" if not manifest.startswith("grounding") else "retrieval"
    with pytest.raises(InputError, match=f"no (base|large) {other} checkpoint"):
        match_reference(state, other)


def test_stage_2_without_its_frames_is_refused_as_stage_2():
    names = MANIFESTS["pretrain_base_224"]
    state = {name: placeholder(name, shape) for name, shape in names.items()}
    with pytest.raises(InputError, match="missing absolute_frame_pos_embed"):
        match_reference(state, "pretrain_stage2")
