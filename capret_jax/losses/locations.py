"""Loss of a model that writes boxes and classes: Pix2Seq (arXiv 2109.10852), sections 2.2 and 2.3.

Targets are made on the device. The objects of a picture, in random order, are followed by noise up
to N: some of it jittered copies of objects, some boxes of their sizes elsewhere, and random boxes.
Noise has the class "fake", and its coordinates are not learnt. So the model always writes N
objects, and says of each whether it is one.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from capret_jax.losses import Loss
from capret_jax.models.location_tokens import BINS, CLASS, TOKENS, LocationTokens, to_bins

# Deviation of jittered copies, as a fraction of the box's sides, and where it is truncated.
_JITTER, _TRUNCATED = 0.05, 2.0


class LocationSequences(NamedTuple):
    """Sequences of B pictures with N objects each, 5N tokens.

    Attributes:
        inputs: (B, 5N) int32 tokens that the decoder reads: start, then all but the last target,
            with "fake" or a random class, half each, in place of every class.
        targets: (B, 5N) int32 tokens to predict.
        weights: (B, 5N) float32 weights of their cross entropies: 0 for coordinates of noise.
    """

    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array


def location_sequences(
    boxes: jax.Array, classes: jax.Array, tokens: LocationTokens, key: jax.Array
) -> LocationSequences:
    """Makes sequences of objects and noise.

    Args:
        boxes: (B, N, 4) float32 cx, cy, w, h as fractions of the picture, N >= 1.
        classes: (B, N) int32 class from 1 to C; 0 where a picture has fewer objects.
        tokens: ids of the tokens.
        key: random key of order, noise and replaced classes.
    """
    order_key, noise_key, class_key = jax.random.split(key, 3)
    is_object = classes > 0
    order = jnp.argsort(
        jnp.where(is_object, jax.random.uniform(order_key, classes.shape), 2.0), axis=1
    )
    boxes = jnp.take_along_axis(boxes, order[:, :, None], axis=1)
    classes = jnp.take_along_axis(classes, order, axis=1)
    is_object = classes > 0
    noise = _noise_boxes(boxes, is_object.sum(axis=1), noise_key)
    bins = to_bins(jnp.where(is_object[:, :, None], boxes, noise))
    class_ids = jnp.where(is_object, BINS + classes - 1, tokens.fake)
    targets = _join(bins, class_ids)
    weights = _join(jnp.broadcast_to(is_object[:, :, None], bins.shape), jnp.ones_like(is_object))
    read = _join(bins, _replaced_classes(classes.shape, tokens, class_key))
    start = jnp.full((len(read), 1), tokens.start, jnp.int32)
    inputs = jnp.concatenate([start, read[:, :-1]], axis=1)
    return LocationSequences(inputs, targets, weights.astype(jnp.float32))


def location_loss(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, smoothing: float = 0.0
) -> Loss:
    """Computes the weighted cross entropy of sequences, averaged over their weights.

    Args:
        logits: (B, 5N, V) float32 next-token logits.
        targets, weights: as in `LocationSequences`.
        smoothing: deviation in bins of the Gaussian over which the target of a coordinate is
            spread; 0 for none. Bins beyond the edges have none of it.

    Returns:
        The loss, and the metrics "accuracy" of classes, "fake" among them, and "distance" of the
        most probable from the true coordinates of objects, as a fraction of the picture's side.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    is_class = jnp.arange(targets.shape[1]) % TOKENS == CLASS
    if smoothing:
        losses = jnp.where(is_class, losses, _smoothed_cross_entropy(logits, targets, smoothing))
    count = weights.sum()
    best = jnp.argmax(logits, axis=-1)
    right = jnp.sum((best == targets) & is_class, dtype=jnp.float32)
    of_objects = weights * ~is_class
    # A class in place of a bin counts as the farthest one.
    distance = jnp.minimum(jnp.abs(best - targets), BINS - 1) / (BINS - 1)
    return Loss(
        jnp.sum(losses * weights) / jnp.maximum(count, 1e-6),
        count,
        {
            "accuracy": (right, jnp.float32(targets.size // TOKENS)),
            "distance": (jnp.sum(distance * of_objects), jnp.sum(of_objects)),
        },
    )


def _smoothed_cross_entropy(logits: jax.Array, targets: jax.Array, deviation: float) -> jax.Array:
    """Returns (B, 5N) cross entropies of Gaussians around bins; those of classes mean nothing."""
    reach = math.ceil(3 * deviation)
    offsets = jnp.arange(-reach, reach + 1)
    bins = targets[..., None] + offsets
    shares = jnp.exp(-0.5 * (offsets / deviation) ** 2) * ((bins >= 0) & (bins < BINS))
    near = jnp.take_along_axis(jax.nn.log_softmax(logits), bins.clip(0, BINS - 1), axis=-1)
    return -(near * shares).sum(axis=-1) / jnp.maximum(shares.sum(axis=-1), 1e-6)


def _noise_boxes(boxes: jax.Array, objects: jax.Array, key: jax.Array) -> jax.Array:
    """Draws noise for every place.

    Args:
        boxes: (B, N, 4) with the objects first.
        objects: (B,) number of objects.
        key: random key.

    Returns:
        (B, N, 4) float32 cx, cy, w, h. The share of jittered copies is drawn for each picture; of
        the rest, half have the size of an object. All are random without any object.
    """
    source_key, jitter_key, place_key, size_key, share_key, kind_key = jax.random.split(key, 6)
    shape = boxes.shape[:2]
    source = jnp.floor(jax.random.uniform(source_key, shape) * objects[:, None]).astype(jnp.int32)
    copies = jnp.take_along_axis(boxes, source[:, :, None], axis=1)
    sides = copies[..., 2:]
    shift = _JITTER * jax.random.truncated_normal(jitter_key, -_TRUNCATED, _TRUNCATED, (*shape, 4))
    jittered = copies + shift * jnp.concatenate([sides, sides], axis=-1)
    elsewhere = jnp.concatenate([jax.random.uniform(place_key, (*shape, 2)), sides], axis=-1)
    corners = jax.random.uniform(size_key, (*shape, 2, 2))
    low, high = corners.min(axis=2), corners.max(axis=2)
    random = jnp.concatenate([(low + high) / 2, high - low], axis=-1)
    share = jax.random.uniform(share_key, (len(boxes), 1))
    kind = jax.random.uniform(kind_key, shape)
    any_object = objects[:, None] > 0
    is_copy = (kind < share) & any_object
    keeps_size = (kind < share + (1 - share) / 2) & any_object
    return jnp.where(
        is_copy[:, :, None], jittered, jnp.where(keeps_size[:, :, None], elsewhere, random)
    )


def _replaced_classes(shape: tuple, tokens: LocationTokens, key: jax.Array) -> jax.Array:
    """Draws "fake" or a random class, half each, for (B, N) places."""
    fake_key, class_key = jax.random.split(key)
    drawn = BINS + jax.random.randint(class_key, shape, 0, tokens.classes)
    return jnp.where(jax.random.bernoulli(fake_key, 0.5, shape), tokens.fake, drawn)


def _join(coordinates: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns (B, 5N) of (B, N, 4) and (B, N)."""
    joined = jnp.concatenate([coordinates, classes[:, :, None]], axis=-1)
    return joined.reshape(len(joined), -1)
