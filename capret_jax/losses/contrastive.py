"""Image-text contrastive loss (ITC; ALBEF, arXiv 2107.07651, eq. 1) with several positives."""

import jax
import jax.numpy as jnp

from capret_jax.batch import NO_IDENTITY
from capret_jax.losses import Loss

# A logit whose exponential is 0, and which times 0 is 0.
_OUT_OF_REACH = -1e9


def positive_pairs(identity: jax.Array, caption_id: jax.Array) -> jax.Array:
    """Which images and texts of a batch belong together.

    Template captions repeat, and an identity has many views: neither may count as a negative.

    Args:
        identity: (B,) int, `NO_IDENTITY` where there is none.
        caption_id: (B,) int.

    Returns:
        (B, B) bool, symmetric, True on the diagonal.
    """
    same_identity = (identity[:, None] == identity) & (identity[:, None] != NO_IDENTITY)
    same_caption = caption_id[:, None] == caption_id
    return same_identity | same_caption | jnp.eye(len(identity), dtype=bool)


def contrastive_loss(
    image_features: jax.Array,
    text_features: jax.Array,
    temperature: jax.Array,
    positives: jax.Array,
    valid: jax.Array,
) -> Loss:
    """Mean of the image-to-text and text-to-image cross entropies over the global batch.

    Args:
        image_features, text_features: (B, E), L2-normalised.
        temperature: (), by which the cosines are divided.
        positives: (B, B) bool; the target of a row is uniform over its positives.
        valid: (B,) bool; other rows are neither asked nor answers.
    """
    pairs = valid[:, None] & valid
    logits = jnp.where(pairs, image_features @ text_features.T / temperature, _OUT_OF_REACH)
    positives = positives & pairs
    targets = positives / jnp.maximum(positives.sum(axis=1, keepdims=True), 1)
    image_to_text = -jnp.sum(targets * jax.nn.log_softmax(logits, axis=1), axis=1)
    text_to_image = -jnp.sum(targets.T * jax.nn.log_softmax(logits, axis=0), axis=0)
    count = valid.sum().astype(jnp.float32)
    best = jnp.argmax(logits, axis=1)
    hits = jnp.take_along_axis(positives, best[:, None], axis=1).sum()
    both = jnp.where(valid, image_to_text + text_to_image, 0.0)
    value = both.sum() / jnp.maximum(count, 1.0) / 2
    return Loss(value, count, {"accuracy": (hits.astype(jnp.float32), count)})
