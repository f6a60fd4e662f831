"""Caption generation, compared with the reference and with generation without a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.checkpoints.conversion import from_reference
from capret_jax.checkpoints.state_dict import read_state_dict
from capret_jax.models.beam_search import BeamConfig, beam_search
from capret_jax.models.bert import causal_mask
from capret_jax.models.caption_generation import SpecialTokens, write_captions
from capret_jax.models.x2vlm import abstract_model, bind
from tests.conftest import DATA

SPECIAL = SpecialTokens(mask=4, end=3)


@pytest.fixture(scope="module")
def caption():
    return dict(np.load(DATA / "x2vlm_tiny_caption.npz"))


@pytest.fixture(scope="module")
def model():
    converted = from_reference(read_state_dict(DATA / "x2vlm_tiny_caption.th"))
    return bind(abstract_model(converted.config)[0], converted.params)


@pytest.fixture(scope="module")
def image(model, caption):
    return jax.jit(model.encode_image)(caption["image"].transpose(0, 2, 3, 1))


def beam_config(caption, beams: int) -> BeamConfig:
    written = int(caption["total_length"]) - len(caption["prompt_ids"])
    return BeamConfig(beams, int(caption["min_length"]), written)


def write(model, image, prompt, config):
    return jax.jit(lambda image: write_captions(model, image, prompt, SPECIAL, config))(image)


@pytest.mark.parametrize("beams", [1, 3])
def test_equals_the_reference(model, image, caption, beams):
    config = beam_config(caption, beams)
    texts, _ = write(model, image, caption["prompt_ids"], config)
    expected = caption[f"beams{beams}"]
    np.testing.assert_array_equal(texts, expected[:, : config.max_tokens])
    assert not expected[:, config.max_tokens :].any()


def write_without_cache(model, image, prompt, config):
    """Generates captions by running the whole text again for each token."""
    batch, length = len(image) * config.beams, len(prompt) + config.max_tokens
    images = jnp.repeat(image, config.beams, axis=0)
    start = jnp.zeros((batch, length), jnp.int32).at[:, : len(prompt)].set(prompt)

    def next_token(last, written, text):
        position = len(prompt) + written
        text = text.at[:, position - 1].set(last)
        masked = text.at[:, position].set(SPECIAL.mask)
        mask = causal_mask(jnp.ones_like(masked))
        states = model.fuse(model.encode_text(masked, mask), mask, images)
        return jax.nn.log_softmax(model.masked_lm_logits(states)[:, position]), text

    first = jnp.full(len(image), prompt[-1])
    return beam_search(next_token, start, first, SPECIAL.end, config)


@pytest.mark.parametrize("prompt", [[2], [2, 10, 11]])
def test_the_cache_does_not_change_captions(model, image, prompt):
    config = BeamConfig(beams=2, min_tokens=2, max_tokens=6, blocked_ngram=2)
    prompt = np.array(prompt)
    expected = jax.jit(lambda image: write_without_cache(model, image, prompt, config))(image)
    texts, scores = write(model, image, prompt, config)
    np.testing.assert_array_equal(texts, expected[0])
    np.testing.assert_allclose(scores, expected[1], rtol=1e-4)


def test_a_caption_that_does_not_fit_is_refused(model, image):
    with pytest.raises(ValueError, match="101 tokens.* 64 positions"):
        write_captions(model, image, np.array([2]), SPECIAL, BeamConfig(max_tokens=100))
