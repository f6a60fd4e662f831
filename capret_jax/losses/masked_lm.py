"""Masked language modelling (BERT, arXiv 1810.04805, sec. 3.1), with label smoothing."""

import math

import jax
import jax.numpy as jnp
import optax

from capret_jax.data.batch import IGNORED_LABEL
from capret_jax.losses import Loss


def masked_lm_loss(
    logits: jax.Array,
    labels: jax.Array,
    smoothing: float = 0.0,
    no_label: jax.Array | int = 0,
) -> Loss:
    """Returns the mean loss over the tokens that have a label.

    Args:
        logits: (B, P, vocab) float32 predictions at P positions.
        labels: (B, P) int original tokens there, `IGNORED_LABEL` for positions that do not count.
        smoothing: share of the target probability that is spread evenly over all tokens but the
            label and `no_label`. The loss of a token is then the Kullback-Leibler divergence of the
            prediction from the target, as in X2-VLM's captioning; without, the cross entropy.
        no_label: () int id of a token that is no label, [CLS] in X2-VLM; for smoothing alone.

    Returns:
        The loss, 0 without any label; its metric "accuracy" counts the same tokens.
    """
    valid = labels != IGNORED_LABEL
    targets = jnp.where(valid, labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if smoothing:
        losses = _smoothed(logits, losses, smoothing, no_label)
    count = valid.sum().astype(jnp.float32)
    hits = ((logits.argmax(-1) == labels) & valid).sum().astype(jnp.float32)
    value = jnp.where(valid, losses, 0.0).sum() / jnp.maximum(count, 1.0)
    return Loss(value, count, {"accuracy": (hits, count)})


def _smoothed(
    logits: jax.Array, entropies: jax.Array, smoothing: float, no_label: jax.Array | int
) -> jax.Array:
    """Returns the (B, P) divergences of predictions with cross entropies (B, P)."""
    vocab = logits.shape[-1]
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    # Minus the log-probabilities of all tokens, and of the one that is no label.
    total = vocab * normalizer - logits.sum(axis=-1)
    without = normalizer - jnp.take(logits, no_label, axis=-1)
    share = smoothing / (vocab - 2)
    negative_entropy = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(share)
    cross = (1 - smoothing) * entropies + share * (total - entropies - without)
    return cross + negative_entropy
