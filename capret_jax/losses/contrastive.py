"""Image-text contrastive losses (ITC) over the global batch, in tiles.

Softmax: ALBEF (arXiv 2107.07651, eq. 1) with several positives. Sigmoid: SigLIP (arXiv 2303.15343,
eq. 1). Each device takes the rows of its own examples and goes over the gathered features of all in
chunks, recomputed in the backward pass: no device ever holds more than (rows, chunk) similarities,
however many devices there are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from capret_jax.data.batch import NO_IDENTITY
from capret_jax.distributed.mesh import BATCH_AXES
from capret_jax.losses import Loss

# Columns of a tile.
CHUNK = 1024
# A logit whose exponential is 0, and which times 0 is 0.
_OUT_OF_REACH = -1e9
# SigLIP's initial bias, fixed here: published checkpoints have no place for a learned one.
SIGMOID_BIAS = -10.0


class Labels(NamedTuple):
    """What makes pairs positive: (B,) int identity, caption and place, and (B,) bool validity."""

    identity: jax.Array
    caption_id: jax.Array
    place: jax.Array
    valid: jax.Array


class _RowStatistics(NamedTuple):
    """Of each row over the columns seen so far, (b,) each.

    Attributes:
        largest: logit.
        exponentials: sum of exp(logit - largest).
        positive: sum of the positives' logits.
        positives: their number.
        best_is_positive: whether the largest logit is a positive's.
        softplus: sum of the pairs' sigmoid losses.
    """

    largest: jax.Array
    exponentials: jax.Array
    positive: jax.Array
    positives: jax.Array
    best_is_positive: jax.Array
    softplus: jax.Array


def positive_pairs(
    identity: jax.Array,
    caption_id: jax.Array,
    other_identity: jax.Array | None = None,
    other_caption_id: jax.Array | None = None,
) -> jax.Array:
    """Which images and texts belong together, but for each one's own.

    Template captions repeat, and an identity has many views: neither may count as a negative.

    Args:
        identity: (B,) int, `NO_IDENTITY` where there is none.
        caption_id: (B,) int.
        other_identity, other_caption_id: (C,) of the columns; the same as the rows when None.

    Returns:
        (B, C) bool.
    """
    columns = identity if other_identity is None else other_identity
    captions = caption_id if other_caption_id is None else other_caption_id
    same_identity = (identity[:, None] == columns) & (identity[:, None] != NO_IDENTITY)
    return same_identity | (caption_id[:, None] == captions)


def contrastive_loss(
    mesh: Mesh,
    image_features: jax.Array,
    text_features: jax.Array,
    temperature: jax.Array,
    identity: jax.Array,
    caption_id: jax.Array,
    valid: jax.Array,
    kind: str = "softmax",
    chunk: int = CHUNK,
) -> Loss:
    """Mean over the valid examples of the global batch.

    Softmax: half the sum of the image-to-text and the text-to-image cross entropy; a row's target
    is uniform over its positives. Sigmoid: the sum over all pairs of an image.

    Args:
        mesh: the batch's mesh.
        image_features, text_features: (B, E) float32, L2-normalised.
        temperature: (), by which the cosines are divided.
        identity, caption_id: (B,) int, see `positive_pairs`.
        valid: (B,) bool; other rows are neither asked nor answers.
        kind: "softmax" or "sigmoid".
        chunk: columns of a tile.
    """
    labels = Labels(identity, caption_id, jnp.arange(len(identity)), valid)

    def on_device(images, texts, temperature, labels):
        everyone = jax.lax.all_gather((images, texts, labels), BATCH_AXES, tiled=True)
        all_images, all_texts, all_labels = everyone
        to_text = _row_statistics(images, all_texts, temperature, labels, all_labels, chunk)
        if kind == "sigmoid":
            return to_text.softplus, to_text.best_is_positive
        to_image = _row_statistics(texts, all_images, temperature, labels, all_labels, chunk)
        return (_entropy(to_text) + _entropy(to_image)) / 2, to_text.best_is_positive

    rows = PartitionSpec(BATCH_AXES)
    losses, hits = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(rows, rows, PartitionSpec(), rows),
        out_specs=rows,
        check_vma=False,  # a scan's first tally is the same everywhere, its later ones are not
    )(image_features, text_features, temperature, labels)
    count = valid.sum().astype(jnp.float32)
    value = jnp.where(valid, losses, 0.0).sum() / jnp.maximum(count, 1.0)
    return Loss(value, count, {"accuracy": ((hits & valid).sum().astype(jnp.float32), count)})


def _entropy(tally: _RowStatistics) -> jax.Array:
    """Cross entropy of each row against the uniform distribution over its positives."""
    normaliser = tally.largest + jnp.log(jnp.maximum(tally.exponentials, 1e-30))
    return normaliser - tally.positive / jnp.maximum(tally.positives, 1)


def _row_statistics(
    rows, columns, temperature, row_labels, column_labels, chunk: int
) -> _RowStatistics:
    """Goes over all columns, a chunk at a time."""
    count, zeros = len(rows), jnp.zeros(len(rows))
    tally = _RowStatistics(
        jnp.full(count, 2 * _OUT_OF_REACH), zeros, zeros, zeros, zeros.astype(bool), zeros
    )

    def add(tally, tile):
        return _add_tile(tally, rows, temperature, row_labels, *tile), None

    if len(columns) <= chunk:
        return add(tally, (columns, column_labels))[0]
    padding = -len(columns) % chunk  # with columns that are not valid
    tiles = jax.tree.map(
        lambda x: jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1)).reshape(
            -1, chunk, *x.shape[1:]
        ),
        (columns, column_labels),
    )
    return jax.lax.scan(jax.checkpoint(add), tally, tiles)[0]


def _add_tile(tally, rows, temperature, row_labels, columns, labels) -> _RowStatistics:
    cosines = jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
    pairs = row_labels.valid[:, None] & labels.valid
    logits = jnp.where(pairs, cosines / temperature, _OUT_OF_REACH)
    positives = pairs & (
        positive_pairs(
            row_labels.identity, row_labels.caption_id, labels.identity, labels.caption_id
        )
        | (row_labels.place[:, None] == labels.place)
    )
    best = jax.lax.stop_gradient(logits.max(axis=1))
    best_is_positive = jnp.take_along_axis(positives, jnp.argmax(logits, axis=1)[:, None], axis=1)[
        :, 0
    ]
    largest = jnp.maximum(tally.largest, best)
    shrink = jnp.exp(tally.largest - largest)
    exponentials = jnp.exp(logits - largest[:, None]).sum(axis=1)
    sign = jnp.where(positives, 1.0, -1.0)
    softplus = jax.nn.softplus(-sign * (logits + SIGMOID_BIAS))
    return _RowStatistics(
        largest,
        tally.exponentials * shrink + exponentials,
        tally.positive + jnp.where(positives, logits, 0.0).sum(axis=1),
        tally.positives + positives.sum(axis=1),
        jnp.where(best > tally.largest, best_is_positive, tally.best_is_positive),
        tally.softplus + jnp.where(pairs, softplus, 0.0).sum(axis=1),
    )
