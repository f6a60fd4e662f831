"""Positive pairs of images and texts: views of one garment, and items with equal captions."""

from typing import NamedTuple

import jax

from capret_jax.data.batch import NO_IDENTITY, Batch


class PairLabels(NamedTuple):
    """Labels that decide which images and texts are positive pairs.

    Attributes:
        identity: (B,) int class of each item, `NO_IDENTITY` where it has none.
        caption_id: (B,) int id of the caption, equal for equal captions.
        valid: (B,) bool, False for padding.
    """

    identity: jax.Array
    caption_id: jax.Array
    valid: jax.Array

    @classmethod
    def of(cls, batch: Batch) -> "PairLabels":
        """Returns the labels of a batch's items."""
        return cls(batch.identity, batch.caption_id, batch.valid)


def positive_pairs(rows: PairLabels, columns: PairLabels) -> jax.Array:
    """Finds pairs of equal identity or of equal caption, which must not count as negatives.

    Args:
        rows: labels of B items.
        columns: labels of Q items.

    Returns:
        (B, Q) bool; padding is not masked.
    """
    identity = rows.identity[:, None]
    same_identity = (identity == columns.identity) & (identity != NO_IDENTITY)
    return same_identity | (rows.caption_id[:, None] == columns.caption_id)
