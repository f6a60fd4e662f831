"""Names and shapes of all published kinds, base and large, at full size but without their bytes."""

import functools
import gzip
import json

import numpy as np
import pytest

from capret_jax.checkpoints.conversion import match_reference, to_reference
from capret_jax.checkpoints.kinds import KINDS
from capret_jax.errors import InputError
from capret_jax.models.beit import relative_position_index
from tests.conftest import DATA

MANIFESTS = json.loads(gzip.decompress((DATA / "checkpoint_keys.json.gz").read_bytes()))


TIES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def placeholders(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Arrays of these shapes that need no memory, each filled with a different value."""
    values = {name: float(i) for i, name in enumerate(shapes)}
    for name in shapes:
        for tied, source in TIES.items():
            if name.endswith(tied):
                values[name] = values[name.replace(tied, source)]
    return {name: placeholder(name, shape, values[name]) for name, shape in shapes.items()}


def placeholder(name: str, shape: list[int], value: float) -> np.ndarray:
    """Array of a constant value; buffers have their correct values."""
    if name.endswith("position_ids"):
        return np.arange(shape[1])[None]
    if name.endswith("relative_position_index"):
        return position_index(round((shape[0] - 1) ** 0.5))
    return np.broadcast_to(np.float32(value), tuple(shape))


@functools.cache
def position_index(grid: int) -> np.ndarray:
    return relative_position_index(grid).astype(np.int64)


@pytest.fixture(scope="module", params=MANIFESTS)
def manifest(request):
    return request.param


@pytest.fixture(scope="module")
def state(manifest):
    return placeholders(MANIFESTS[manifest])


@pytest.fixture(scope="module")
def matched(state):
    return match_reference(state)


def sample_names(state: dict, count: int = 4) -> list[str]:
    """Evenly spaced names, without the one that a stage-1 file lacks and a stage-2 file has."""
    names = [name for name in state if name != "absolute_frame_pos_embed"]
    return names[:: len(names) // (count - 1)] + names[-1:]


def is_spare(name: str) -> bool:
    """Returns True if nothing is lost without this name: others of the file tell its values."""
    tied = (*TIES, *TIES.values())
    return name.endswith(("position_ids", "position_index", "one_hot", *tied))


def needed_names(state: dict) -> list[str]:
    """Sample of the names without which a file is refused."""
    return sample_names({name: a for name, a in state.items() if not is_spare(name)})


def test_every_name_is_accounted_for(manifest, state, matched):
    report, (kind, size, pixels) = matched.report, manifest.rsplit("_", 2)
    assert (report.kind, report.size, report.image_size) == (kind, size, int(pixels))
    assert report.used.keys() | report.ignored.keys() == state.keys()
    assert not report.used.keys() & report.ignored.keys()
    assert matched.retained.keys() == set(KINDS[kind].extras)
    assert not report.notes


def test_only_buffers_ties_and_extras_are_ignored(matched):
    expected = ("position_ids", "position_index", "decoder.weight", "decoder.bias")
    extras = ("absolute_frame_pos_embed", "crit_mask_lm_smoothed.one_hot")
    assert all(name.endswith(expected) or name in extras for name in matched.report.ignored)


def test_the_export_gives_every_name_its_values(state, matched):
    exported = to_reference(matched.params, matched.config, matched.report.kind, matched.retained)
    assert exported.keys() == state.keys()
    for name, array in state.items():
        assert (exported[name].shape, exported[name].dtype) == (array.shape, array.dtype), name
        # Each array has a constant, different value, so the first element identifies it.
        assert exported[name].flat[0] == array.flat[0], name


def test_a_dropped_name_is_refused(manifest, state):
    for name in needed_names(state):
        if name == "temp" and manifest.startswith("retrieval"):
            continue  # where it was fixed in training
        with pytest.raises(InputError, match=f": missing {name}\\.$"):
            match_reference({key: array for key, array in state.items() if key != name})


def test_an_added_name_is_refused(state):
    for name in ("extra.weight", "vision_encoder.blocks.99.gamma_1", "pooler.dense.bias"):
        with pytest.raises(InputError, match=rf": unexpected {name} \(3,\)\.$"):
            match_reference(state | {name: np.zeros(3, np.float32)})


def test_a_renamed_name_is_refused(manifest, state):
    for name in needed_names(state):
        if name == "temp" and manifest.startswith("retrieval"):
            continue
        renamed = {f"{key}_" if key == name else key: array for key, array in state.items()}
        with pytest.raises(InputError, match=f"missing {name}.*; unexpected {name}_"):
            match_reference(renamed)


def test_another_shape_is_refused(state):
    for name in sample_names(state):
        shape = state[name].shape
        longer = [(*shape[:i], length + 1, *shape[i + 1 :]) for i, length in enumerate(shape)]
        if name == "crit_mask_lm_smoothed.one_hot":
            longer = longer[:1]  # its second axis may have any length
        for wrong in ((*shape, 1), *longer):
            other = np.broadcast_to(np.float32(0), wrong)
            with pytest.raises(InputError, match=f": {name} has shape .* is needed\\.$"):
                match_reference(state | {name: other})


def test_integer_weights_are_refused(state):
    name = "vision_encoder.cls_token"
    with pytest.raises(InputError, match=f"{name} has dtype int32"):
        match_reference(state | {name: np.zeros(state[name].shape, np.int32)})


def test_a_file_of_another_kind_than_requested_is_refused(manifest, state):
    other = "grounding" if not manifest.startswith("grounding") else "retrieval"
    with pytest.raises(InputError, match=f"no (base|large) {other} checkpoint"):
        match_reference(state, other)


def test_a_stage_1_file_is_refused_as_stage_2():
    state = placeholders(MANIFESTS["pretrain_base_224"])
    with pytest.raises(InputError, match="missing absolute_frame_pos_embed"):
        match_reference(state, "pretrain_stage2")
