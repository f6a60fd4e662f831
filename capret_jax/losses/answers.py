"""X2-VLM's loss of visual question answering: several weighted answers to each question."""

import jax
import jax.numpy as jnp
import optax

from capret_jax.data.batch import IGNORED_LABEL
from capret_jax.losses import Loss


def weighted_answer_loss(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, valid: jax.Array
) -> Loss:
    """Returns the sum over answers of weight x (sum of token cross entropies), by the questions.

    Args:
        logits: (BK, L, vocab) float32 predictions of the tokens of K answers to each question.
        labels: (BK, L) int tokens, `IGNORED_LABEL` for positions that do not count.
        weights: (BK,) float32 weights of the answers.
        valid: (B,) bool, True for questions that count.

    Returns:
        The loss, 0 without a question; its metric "accuracy" is of all tokens, unweighted.
    """
    real = labels != IGNORED_LABEL
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(real, labels, 0))
    answers = jnp.where(real, entropies, 0.0).sum(axis=1)
    count = valid.sum().astype(jnp.float32)
    hits = ((logits.argmax(-1) == labels) & real).sum().astype(jnp.float32)
    metrics = {"accuracy": (hits, real.sum().astype(jnp.float32))}
    return Loss((weights * answers).sum() / jnp.maximum(count, 1.0), count, metrics)
