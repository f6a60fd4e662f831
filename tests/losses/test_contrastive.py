"""ITC against the reference, closed forms and symmetry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.losses.contrastive import contrastive_loss, positive_pairs

EVERY = np.ones(9, bool)


@pytest.mark.parametrize("name, ids", [("loss_itc", False), ("loss_itc_idx", True)])
def test_equals_the_reference(golden, golden_state, name, ids):
    rows = jnp.arange(3)
    identity = jnp.array(golden["itc_idx"]) if ids else jnp.full(3, -1)
    loss = contrastive_loss(
        golden["image_feat"],
        golden["text_feat"],
        golden_state["temp"],
        positive_pairs(identity, rows),
        EVERY[:3],
    )
    assert float(loss.value) == pytest.approx(float(golden[name]), rel=1e-4)


def test_identical_features_give_the_logarithm_of_the_batch():
    features = jnp.tile(jnp.array([[1.0, 0.0]]), (5, 1))
    loss = contrastive_loss(
        features, features, jnp.float32(0.07), jnp.eye(5, dtype=bool), EVERY[:5]
    )
    assert float(loss.value) == pytest.approx(np.log(5), rel=1e-6)
    assert float(loss.count) == 5


def test_positives_are_identities_and_captions_but_not_the_missing_identity():
    pairs = positive_pairs(jnp.array([4, 4, -1, -1, 7]), jnp.array([1, 2, 3, 4, 2]))
    expected = np.eye(5, dtype=bool)
    expected[0, 1] = expected[1, 0] = True  # same identity
    expected[1, 4] = expected[4, 1] = True  # same caption
    np.testing.assert_array_equal(pairs, expected)


def test_a_permuted_batch_has_the_same_loss():
    rng = np.random.default_rng(0)
    image, text = (rng.normal(size=(6, 4)).astype(np.float32) for _ in range(2))
    identity, order = np.array([0, 0, 1, 2, 2, -1]), rng.permutation(6)

    def value(rows):
        pairs = positive_pairs(identity[rows], np.arange(6)[rows])
        loss = contrastive_loss(image[rows], text[rows], jnp.float32(0.1), pairs, EVERY[:6])
        return float(loss.value)

    assert value(order) == pytest.approx(value(np.arange(6)), rel=1e-6)


def test_a_positive_of_the_same_caption_is_not_pushed_away():
    features = jnp.eye(2)
    gradient = jax.grad(
        lambda text: (
            contrastive_loss(
                features,
                text,
                jnp.float32(1.0),
                positive_pairs(jnp.array([-1, -1]), jnp.array([3, 3])),
                EVERY[:2],
            ).value
        )
    )(jnp.ones((2, 2)) / np.sqrt(2))
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_invalid_rows_change_nothing():
    rng = np.random.default_rng(1)
    image, text = (rng.normal(size=(6, 4)).astype(np.float32) for _ in range(2))
    valid = np.array([True, False, True, True, False, True])
    # The invalid rows share their identity with a valid one.
    identity, captions = np.array([0, 0, 1, 1, 2, 2]), np.arange(6)

    def loss(rows, valid):
        pairs = positive_pairs(identity[rows], captions[rows])
        return contrastive_loss(image[rows], text[rows], jnp.float32(0.1), pairs, valid)

    padded, without = loss(np.arange(6), valid), loss(np.flatnonzero(valid), EVERY[:4])
    assert float(padded.value) == pytest.approx(float(without.value), rel=1e-6)
    assert float(padded.count) == 4
    assert float(padded.metrics["accuracy"][0]) == float(without.metrics["accuracy"][0])
