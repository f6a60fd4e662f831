"""Additive angular margin loss (ArcFace, arXiv 1801.07698, eq. 3)."""

import math

import jax
import jax.numpy as jnp
import optax

from capret_jax.batch import NO_IDENTITY
from capret_jax.losses import Loss


def arcface_logits(cosine: jax.Array, labels: jax.Array, margin: float, scale: float) -> jax.Array:
    """scale * cos(theta + margin) for the true class and scale * cos(theta) for the others.

    Past theta = pi - margin, where cos(theta + margin) would rise again, the true class gets the
    straight line cos(theta) - margin * sin(margin), as the authors' code does.

    Args:
        cosine: (B, C).
        labels: (B,) int.
        margin: radians.
        scale: the logits' range.
    """
    # The square root's slope is infinite at 0, hence the floor.
    sine = jnp.sqrt(jnp.maximum(1.0 - cosine**2, 1e-12))
    shifted = cosine * math.cos(margin) - sine * math.sin(margin)
    shifted = jnp.where(cosine > -math.cos(margin), shifted, cosine - margin * math.sin(margin))
    is_true = labels[:, None] == jnp.arange(cosine.shape[1])
    return scale * jnp.where(is_true, shifted, cosine)


def arcface_loss(
    features: jax.Array, class_weights: jax.Array, labels: jax.Array, margin: float, scale: float
) -> Loss:
    """Mean cross entropy over the examples that have an identity.

    Args:
        features: (B, E), L2-normalised.
        class_weights: (C, E), normalised here.
        labels: (B,) int class, or `NO_IDENTITY`.
        margin: radians.
        scale: the logits' range.
    """
    directions = class_weights / jnp.linalg.norm(class_weights, axis=1, keepdims=True)
    cosine = features @ directions.T
    valid = labels != NO_IDENTITY
    labels = jnp.where(valid, labels, 0)
    logits = arcface_logits(cosine, labels, margin, scale)
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    count = valid.sum().astype(jnp.float32)
    hits = ((cosine.argmax(-1) == labels) & valid).sum().astype(jnp.float32)
    value = jnp.where(valid, entropies, 0.0).sum() / jnp.maximum(count, 1.0)
    return Loss(value, count, {"accuracy": (hits, count)})
