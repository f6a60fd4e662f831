"""Videos: averages of their frames' states, with the positions that a published file holds."""

import dataclasses
import json

import numpy as np
import pytest

from capret_jax.checkpoints.conversion import from_reference, to_reference
from capret_jax.checkpoints.converted import load_retained, read_card, save_converted
from capret_jax.checkpoints.loaded_model import LoadedModel
from capret_jax.checkpoints.loading import load_model
from capret_jax.config import SIZES
from capret_jax.errors import InputError

RNG = np.random.default_rng(0)
POSITIONS = RNG.normal(size=(1, 3, 1, 64)).astype(np.float32)
VIDEOS = RNG.normal(size=(2, 3, 64, 64, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def state(golden_state):
    return golden_state | {"absolute_frame_pos_embed": POSITIONS}


@pytest.fixture(scope="module")
def folder(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("video") / "model"
    save_converted(folder, from_reference(state))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def states(model):
    """States of each frame, (B, F, 1+N, D)."""
    frames = model.encode_image(VIDEOS.reshape(-1, 64, 64, 3))
    return np.asarray(frames).reshape(2, 3, 17, 64)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_video_is_the_average_of_its_frames_with_their_positions(model, states, frames):
    expected = (states[:, :frames] + POSITIONS[:, :frames]).sum(axis=1) / frames
    video = model.encode_video(VIDEOS[:, :frames])
    np.testing.assert_allclose(video, expected, rtol=0, atol=2e-5)
    assert model.image_features(video).shape == (2, 32)


def test_a_shorter_video_has_the_first_positions(model, states):
    last = model.encode_video(VIDEOS[:, 2:])
    np.testing.assert_allclose(last, states[:, 2] + POSITIONS[:, 0], rtol=0, atol=2e-5)


def test_a_model_without_positions_encodes_single_frames(golden_params, model, states):
    plain = LoadedModel(golden_params, SIZES["tiny"], [], 64)
    np.testing.assert_array_equal(
        plain.encode_video(VIDEOS[:, :1]), plain.encode_image(VIDEOS[:, 0])
    )
    with pytest.raises(InputError, match="2 frames .* which has 0 frame positions: give at most 1"):
        plain.encode_video(VIDEOS[:, :2])
    four = np.concatenate([VIDEOS, VIDEOS[:, :1]], axis=1)
    with pytest.raises(InputError, match="4 frames .* which has 3 frame positions: give at most 3"):
        model.encode_video(four)


@pytest.mark.parametrize("pixels", [VIDEOS[0], VIDEOS[:, :, :32], VIDEOS.astype(np.uint8)])
def test_impossible_videos_are_refused(model, pixels):
    with pytest.raises(InputError, match="videos (must be|are uint8)"):
        model.encode_video(pixels)


def test_other_image_sizes_are_interpolated(model):
    assert model.encode_video(VIDEOS[:, :, :32, :32]).shape == (2, 5, 64)


def test_a_video_model_is_loaded_and_exported_exactly(folder, model, state):
    card = read_card(folder)
    assert (card.kind, card.config.frames, card.fresh) == ("pretrain_stage2", 3, [])
    assert not load_retained(folder)
    exported = to_reference(model.params, card.config, card.kind)
    assert exported.keys() == state.keys()
    np.testing.assert_array_equal(exported["absolute_frame_pos_embed"], POSITIONS)


def test_a_card_of_an_older_version_has_no_frames(golden_state, tmp_path):
    save_converted(tmp_path / "older", from_reference(golden_state))
    path = tmp_path / "older" / "model.json"
    card = json.loads(path.read_text())
    del card["model"]["frames"]
    path.write_text(json.dumps(card))
    assert read_card(tmp_path / "older").config == SIZES["tiny"]
    assert load_model(tmp_path / "older").config.frames == 0


def test_a_negative_number_of_frames_is_refused():
    with pytest.raises(InputError, match="model.frames=-1 is negative"):
        dataclasses.replace(SIZES["tiny"], frames=-1)
