"""The decoder of locations against NumPy, and cached writing against writing token by token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from capret_jax.models.location_decoder import sine_features
from capret_jax.models.location_generation import write_locations
from capret_jax.models.location_tokens import (
    BINS,
    CLASS,
    TOKENS,
    LocationTokens,
    from_bins,
    to_bins,
)
from capret_jax.models.sampling import sampling_scores
from capret_jax.models.x2vlm import abstract_model, bind, init_params
from tests.small_model import SMALL_MODEL

ITEMS = 2
MODEL = dataclasses.replace(
    SMALL_MODEL, location_layers=2, location_items=ITEMS, location_classes=4
)
VOCABULARY = LocationTokens(4)
HEADS, WIDTH = MODEL.text_heads, MODEL.text_width


@pytest.fixture(scope="module")
def params():
    # Larger than at the start of training, so that what is written differs between pictures.
    return jax.tree.map(lambda x: 3 * x, init_params(MODEL, jax.random.key(0)))


@pytest.fixture(scope="module")
def model(params):
    return bind(abstract_model(MODEL)[0], params)


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 1 + MODEL.grid**2, MODEL.vision_width)).astype(np.float32)


def test_logits_equal_those_of_a_numpy_decoder(params, model, image):
    ids = np.random.default_rng(1).integers(0, VOCABULARY.size, (3, TOKENS * ITEMS))
    logits = model.location_logits(jnp.asarray(ids), jnp.asarray(image))
    expected = numpy_decoder(jax.device_get(params["locations"]), ids, image)
    np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("top_p", [0.0, 0.9])
def test_writing_with_a_cache_equals_writing_token_by_token(model, image, top_p):
    keys, image = jax.random.split(jax.random.key(1), len(image)), jnp.asarray(image)
    written = write_locations(model, image, keys, top_p)
    ids = np.full((len(image), 1 + TOKENS * ITEMS), VOCABULARY.start)
    for position in range(TOKENS * ITEMS):
        logits = np.asarray(model.location_logits(jnp.asarray(ids[:, :-1]), image))[:, position]
        is_class = position % TOKENS == CLASS
        low, high = (BINS, VOCABULARY.fake + 1) if is_class else (0, BINS)
        allowed = np.full_like(logits, -np.inf)
        allowed[:, low:high] = np.log(softmax(logits[:, low:high].astype(np.float64), axis=1))
        scores = sampling_scores(jnp.asarray(allowed, jnp.float32), keys, position, top_p)
        ids[:, position + 1] = np.argmax(scores, axis=1)
        if is_class:
            item = position // TOKENS
            true = np.exp(allowed[:, BINS : VOCABULARY.fake])
            np.testing.assert_allclose(written.probabilities[:, item], true, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(written.token_ids, ids[:, 1:])
    bins = ids[:, 1:].reshape(len(image), ITEMS, TOKENS)[..., :CLASS]
    np.testing.assert_allclose(written.boxes, from_bins(jnp.asarray(bins)), atol=1e-6)
    assert len({tuple(row) for row in ids}) == len(image)  # or the pictures would not matter


def test_what_is_written_of_a_picture_does_not_depend_on_its_batch(model, image):
    keys = jax.random.split(jax.random.key(1), len(image))
    together = write_locations(model, jnp.asarray(image), keys, 0.9)
    alone = write_locations(model, jnp.asarray(image[1:2]), keys[1:2], 0.9)
    np.testing.assert_array_equal(together.token_ids[1], alone.token_ids[0])


def test_several_sequences_of_a_picture_share_its_states(model, image):
    keys = jax.random.split(jax.random.key(2), 6)
    together = write_locations(model, jnp.asarray(image), keys, 0.9)
    repeated = write_locations(model, jnp.repeat(jnp.asarray(image), 2, axis=0), keys, 0.9)
    np.testing.assert_array_equal(together.token_ids, repeated.token_ids)


def test_boxes_survive_bins_and_are_cut_at_the_edges():
    boxes = jnp.array([[0.5, 0.4, 0.2, 0.6], [0.9, 0.1, 0.4, 0.4]])
    # y1, x1, y2, x2 of the first box, times 999.
    np.testing.assert_array_equal(to_bins(boxes)[0], [100, 400, 699, 599])
    np.testing.assert_array_equal(to_bins(boxes)[1], [0, 699, 300, 999])
    np.testing.assert_allclose(from_bins(to_bins(boxes))[0], boxes[0], atol=1 / BINS)


def test_boxes_of_swapped_bins_have_their_edges_in_order():
    np.testing.assert_allclose(
        from_bins(jnp.array([699, 599, 100, 400])), [0.5, 0.4, 0.2, 0.6], atol=1 / BINS
    )


def test_neighbouring_bins_have_similar_features():
    features = sine_features(np.arange(BINS) / (BINS - 1), 4 / BINS, 48)
    similarity = features @ features[500] / 24
    assert similarity[500] == pytest.approx(1)
    assert similarity[501] > similarity[510] > similarity[600] > 0


def numpy_decoder(params: dict, ids: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Computes logits with float64 loops over heads, by the formulas of the papers."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    bins = (
        params["bins"]["embedding"]
        + sine_features(np.arange(BINS) / 999, 0.004, WIDTH) / WIDTH**0.5
    )
    table = np.concatenate([bins, params["classes"]["embedding"], params["special"]["embedding"]])
    positions = np.arange(ids.shape[1])
    x = table[ids] + params["item"]["embedding"][positions // 5]
    x = norm(x + params["place"]["embedding"][positions % 5], params["norm"])
    grid, half = MODEL.grid, MODEL.vision_width // 2
    context = image.astype(np.float64)
    for y in range(grid):
        for column in range(grid):
            place = np.array([(y + 0.5) / grid, (column + 0.5) / grid])
            context[:, 1 + y * grid + column] += sine_features(place, 2 / grid, half).reshape(-1)
    causal = np.tril(np.ones((len(positions), len(positions))))
    for number in range(MODEL.location_layers):
        layer = params["layers"][str(number)]
        x = attend(x, x, layer["attention"], causal)
        x = attend(x, context, layer["cross_attention"], 1)
        hidden = linear(x, layer["mlp"]["up"])
        x = norm(x + linear(gelu(hidden), layer["mlp"]["down"]), layer["norm"])
    head = params["head"]
    return norm(gelu(linear(x, head["dense"])), head["norm"]) @ table.T + head["bias"]


def attend(x, context, layer, visible):
    query, key, value = (
        linear(states, layer[name])
        for states, name in ((x, "query"), (context, "key"), (context, "value"))
    )
    attended = []
    for columns in np.split(np.arange(WIDTH), HEADS):
        logits = query[..., columns] @ key[..., columns].swapaxes(1, 2)
        weights = softmax(logits / len(columns) ** 0.5 - 1e9 * (1 - visible), axis=-1)
        attended.append(weights @ value[..., columns])
    return norm(x + linear(np.concatenate(attended, axis=-1), layer["out"]), layer["norm"])


def linear(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def gelu(x):
    return x * (1 + erf(x / 2**0.5)) / 2


def norm(x, layer):
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
    return scaled * layer["scale"] + layer["bias"]
