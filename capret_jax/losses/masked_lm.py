"""Masked language modelling (BERT, arXiv 1810.04805, sec. 3.1)."""

import jax
import jax.numpy as jnp
import optax

from capret_jax.data.batch import IGNORED_LABEL
from capret_jax.losses import Loss


def masked_lm_loss(logits: jax.Array, labels: jax.Array) -> Loss:
    """Returns the mean cross entropy over the tokens that have a label.

    Args:
        logits: (B, P, vocab) float32 predictions at P positions.
        labels: (B, P) int original tokens there, `IGNORED_LABEL` for positions that do not count.

    Returns:
        The loss, 0 without any label; its metric "accuracy" counts the same tokens.
    """
    valid = labels != IGNORED_LABEL
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, labels, 0))
    count = valid.sum().astype(jnp.float32)
    hits = ((logits.argmax(-1) == labels) & valid).sum().astype(jnp.float32)
    value = jnp.where(valid, entropies, 0.0).sum() / jnp.maximum(count, 1.0)
    return Loss(value, count, {"accuracy": (hits, count)})
