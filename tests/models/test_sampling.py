"""Sampling of tokens: the nucleus by hand, and frequencies of samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.models.sampling import nucleus, sampling_scores

PROBABILITIES = np.array([0.1, 0.4, 0.05, 0.3, 0.15])


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.0, [1]), (0.39, [1]), (0.41, [1, 3]), (0.8, [1, 3, 4]), (1.0, [0, 1, 2, 3, 4])],
)
def test_the_nucleus_is_the_smallest_set_of_that_probability(top_p, kept):
    log_probs = jnp.log(PROBABILITIES)[None]
    np.testing.assert_array_equal(np.flatnonzero(nucleus(log_probs, top_p)[0] > -jnp.inf), kept)


@pytest.mark.parametrize("top_p", [0.2, 0.5, 0.9, 0.999])
def test_the_nucleus_is_that_of_sorted_probabilities(top_p):
    logits = 3 * np.random.default_rng(0).normal(size=(50, 1016))
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    kept = np.asarray(nucleus(jnp.asarray(log_probs, jnp.float32), top_p)) > -np.inf
    for row, inside in zip(np.exp(log_probs), kept, strict=True):
        order = np.argsort(-row)
        count = 1 + int((np.cumsum(row[order]) < top_p).sum())
        assert set(np.flatnonzero(inside)) == set(order[:count])


def test_tokens_are_drawn_in_proportion_to_their_probabilities():
    keys = jax.random.split(jax.random.key(0), 4000)
    log_probs = jnp.broadcast_to(jnp.log(PROBABILITIES), (4000, 5))
    drawn = jnp.argmax(sampling_scores(log_probs, keys, jnp.int32(3), 0.8), axis=1)
    expected = np.array([0, 0.4, 0, 0.3, 0.15]) / 0.85
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 4000, expected, atol=0.03)


def test_a_row_depends_on_its_own_key_and_on_the_step():
    keys = jax.random.split(jax.random.key(0), 3)
    log_probs = jnp.broadcast_to(jnp.log(PROBABILITIES), (3, 5))
    all_rows = sampling_scores(log_probs, keys, jnp.int32(1))
    np.testing.assert_array_equal(
        sampling_scores(log_probs[:1], keys[1:2], jnp.int32(1))[0], all_rows[1]
    )
    assert (np.asarray(all_rows) != sampling_scores(log_probs, keys, jnp.int32(2))).all()
