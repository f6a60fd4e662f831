"""The loss of writing locations: closed forms, and what its sequences are made of."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.losses.locations import location_loss, location_sequences
from capret_jax.models.location_tokens import BINS, CLASS, TOKENS, LocationTokens, to_bins

VOCABULARY = LocationTokens(13)
PICTURES, ITEMS = 200, 6


@pytest.fixture(scope="module")
def objects():
    """Boxes and classes of pictures with 0, 1, 2 or 3 objects."""
    rng = np.random.default_rng(0)
    sides = rng.uniform(0.1, 0.4, (PICTURES, ITEMS, 2))
    centres = rng.uniform(0.2, 0.8, (PICTURES, ITEMS, 2))
    boxes = np.concatenate([centres, sides], axis=-1).astype(np.float32)
    classes = rng.integers(1, 14, (PICTURES, ITEMS), np.int32)
    classes[np.arange(ITEMS) >= np.arange(PICTURES)[:, None] % 4] = 0
    boxes[classes == 0] = 0
    return boxes, classes


@pytest.fixture(scope="module")
def sequences(objects):
    boxes, classes = map(jnp.asarray, objects)
    made = location_sequences(boxes, classes, VOCABULARY, jax.random.key(0))
    return jax.tree.map(np.asarray, made)


def by_item(tokens):
    return tokens.reshape(PICTURES, ITEMS, TOKENS)


def test_all_objects_come_first_each_once_in_random_order(objects, sequences):
    boxes, classes = objects
    bins, targets = np.asarray(to_bins(jnp.asarray(boxes))), by_item(sequences.targets)
    firsts = []
    for picture in range(PICTURES):
        count = picture % 4
        expected = [(*bins[picture, i], BINS + classes[picture, i] - 1) for i in range(count)]
        found = [tuple(item) for item in targets[picture, :count]]
        assert sorted(found) == sorted(expected)
        assert (targets[picture, count:, CLASS] == VOCABULARY.fake).all()
        if count == 3:
            firsts.append(expected.index(found[0]))
    assert set(firsts) == {0, 1, 2}


def test_coordinates_of_noise_have_no_weight_and_all_classes_have(sequences):
    weights, targets = by_item(sequences.weights), by_item(sequences.targets)
    is_object = targets[..., CLASS] != VOCABULARY.fake
    np.testing.assert_array_equal(weights[..., CLASS], 1)
    np.testing.assert_array_equal(
        weights[..., :CLASS], np.broadcast_to(is_object[..., None], weights[..., :CLASS].shape)
    )


def test_inputs_are_the_targets_before_with_other_classes(sequences):
    inputs, targets = sequences.inputs, sequences.targets
    np.testing.assert_array_equal(inputs[:, 0], VOCABULARY.start)
    coordinates = np.arange(1, TOKENS * ITEMS) % TOKENS != 0
    np.testing.assert_array_equal(inputs[:, 1:][:, coordinates], targets[:, :-1][:, coordinates])
    classes = inputs[:, TOKENS::TOKENS]
    fake = classes == VOCABULARY.fake
    assert fake.mean() == pytest.approx(0.5, abs=0.06)
    assert set(classes[~fake]) == set(range(BINS, BINS + 13))


def test_noise_is_copies_of_objects_and_other_boxes_inside_the_picture(objects, sequences):
    bins = by_item(sequences.targets)[..., :CLASS] / (BINS - 1)
    true = np.asarray(to_bins(jnp.asarray(objects[0]))) / (BINS - 1)
    near = []
    for picture in range(PICTURES):
        count = picture % 4
        if count:
            distance = np.abs(bins[picture, count:, None] - true[picture, None, :count]).max(axis=2)
            # A jittered copy's edges move by two deviations of at most 5 % of 0.4, and half of
            # that again as its sides change.
            near += [*(distance.min(axis=1) < 0.065)]
    assert 0.4 < np.mean(near) < 0.7
    assert bins.min() >= 0 and bins.max() <= 1
    assert (bins[..., 2:] >= bins[..., :2]).all()


def test_pictures_draw_their_own_noise_whatever_else_is_in_the_key(objects):
    boxes, classes = map(jnp.asarray, objects)
    one, other = (
        location_sequences(boxes, classes, VOCABULARY, jax.random.key(seed)).targets
        for seed in (1, 2)
    )
    assert (np.asarray(one) != other).any(axis=1).all()


def test_equal_logits_cost_the_logarithm_of_the_vocabulary(sequences):
    logits = jnp.zeros((*sequences.targets.shape, VOCABULARY.size))
    loss = location_loss(logits, sequences.targets, sequences.weights)
    assert loss.value == pytest.approx(math.log(VOCABULARY.size), rel=1e-5)
    assert loss.count == sequences.weights.sum()


def test_tokens_count_by_their_weights():
    targets = jnp.array([[3, 7]])
    logits = jnp.zeros((1, 2, VOCABULARY.size)).at[0, 0, 3].set(50.0)
    right, wrong = 0.0, math.log(VOCABULARY.size)
    for weights in ((1.0, 1.0), (3.0, 1.0), (1.0, 0.0)):
        loss = location_loss(logits, targets, jnp.array([weights]))
        expected = (weights[0] * right + weights[1] * wrong) / sum(weights)
        assert loss.value == pytest.approx(expected, abs=1e-5)


def test_smoothed_targets_of_coordinates_are_gaussians_inside_the_bins():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, TOKENS, VOCABULARY.size))
    targets, weights = np.array([[1, 500, 998, 700, BINS + 3]]), np.ones((1, TOKENS))
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = [-log_probs[0, CLASS, BINS + 3]]
    for place, target in enumerate(targets[0, :CLASS]):
        bins = np.arange(max(target - 6, 0), min(target + 7, BINS))
        shares = np.exp(-0.5 * ((bins - target) / 2.0) ** 2)
        expected.append(-(shares / shares.sum()) @ log_probs[0, place, bins])
    loss = location_loss(*map(jnp.asarray, (logits, targets, weights)), smoothing=2.0)
    assert loss.value == pytest.approx(np.mean(expected), rel=1e-4)


def test_metrics_are_the_accuracy_of_classes_and_the_distance_of_coordinates():
    targets = jnp.array([[100, 200, 300, 400, BINS + 2], [0, 0, 9, 9, VOCABULARY.fake]])
    weights = jnp.array([[1.0, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    predicted = jnp.array([[110, 200, 300, 390, BINS + 3], [5, 5, 5, 5, VOCABULARY.fake]])
    loss = location_loss(jax.nn.one_hot(predicted, VOCABULARY.size), targets, weights)
    assert loss.metrics["accuracy"] == (1, 2)
    total, count = loss.metrics["distance"]
    assert count == 4
    assert total == pytest.approx(20 / 999)
