"""Image-text matching (ITM; ALBEF, arXiv 2107.07651, sec. 3.2)."""

import jax
import jax.numpy as jnp
import optax

from capret_jax.losses import Loss


def matching_loss(logits: jax.Array, labels: jax.Array, valid: jax.Array) -> Loss:
    """Returns the mean cross entropy of match (1) against no match (0) over the valid pairs.

    Args:
        logits: (..., 2) float32.
        labels: (...) int, 1 for a match.
        valid: (...) bool, False for pairs that do not count.

    Returns:
        The loss, 0 without a valid pair; its metric "accuracy" counts the valid pairs.
    """
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    count = valid.sum().astype(jnp.float32)
    hits = ((logits.argmax(-1) == labels) & valid).sum().astype(jnp.float32)
    value = jnp.where(valid, entropies, 0.0).sum() / jnp.maximum(count, 1.0)
    return Loss(value, count, {"accuracy": (hits, count)})
