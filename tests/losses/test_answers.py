"""X2-VLM's loss of weighted answers, against an independent computation."""

import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.data.batch import IGNORED_LABEL
from capret_jax.losses.answers import weighted_answer_loss

VOCAB = 7


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_answers_are_summed_over_tokens_by_weight_and_divided_by_the_images():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 3, VOCAB)).astype(np.float32)
    # Two questions with three answers of 1 to 3 tokens; the last answer of the second is padding.
    labels = rng.integers(0, VOCAB, (6, 3))
    for row, length in enumerate((1, 2, 3, 3, 2, 0)):
        labels[row, length:] = IGNORED_LABEL
    weights = np.array([0.7, 0.2, 0.1, 0.6, 0.4, 0.0], np.float32)
    expected = 0.0
    for row in range(6):
        for token, label in enumerate(labels[row]):
            if label != IGNORED_LABEL:
                expected -= weights[row] * log_softmax(logits[row, token])[label]
    loss = weighted_answer_loss(logits, labels, weights, jnp.array([True, True]))
    assert float(loss.value) == pytest.approx(expected / 2, rel=1e-5)
    assert float(loss.count) == 2
    hits, tokens = loss.metrics["accuracy"]
    assert float(tokens) == 11
    real = labels != IGNORED_LABEL
    assert float(hits) == (logits.argmax(-1) == labels)[real].sum()


def test_a_long_answer_counts_more_than_a_short_one():
    """A mean over tokens would weight the two answers equally."""
    logits = np.zeros((2, 4, VOCAB), np.float32)
    labels = np.array([[1, IGNORED_LABEL, IGNORED_LABEL, IGNORED_LABEL], [1, 2, 3, 4]])
    loss = weighted_answer_loss(logits, labels, np.array([0.5, 0.5]), jnp.array([True]))
    assert float(loss.value) == pytest.approx((0.5 * 1 + 0.5 * 4) * np.log(VOCAB), rel=1e-6)


def test_without_a_question_the_loss_is_zero():
    labels = np.full((1, 2), IGNORED_LABEL)
    loss = weighted_answer_loss(np.zeros((1, 2, VOCAB)), labels, np.ones(1), jnp.array([False]))
    assert float(loss.value) == 0
