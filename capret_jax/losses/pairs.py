"""Positive pairs of images and texts: several views of one garment share a text, and vice versa."""

from typing import NamedTuple

import jax

from capret_jax.data.batch import NO_IDENTITY, Batch


class PairLabels(NamedTuple):
    """Labels that decide which images and texts belong together.

    Attributes:
        identity: (B,) int class of each item, `NO_IDENTITY` where it has none.
        caption_id: (B,) int, equal for equal captions.
        valid: (B,) bool, False for padding.
    """

    identity: jax.Array
    caption_id: jax.Array
    valid: jax.Array

    @classmethod
    def of(cls, batch: Batch) -> "PairLabels":
        """The labels of a batch's items."""
        return cls(batch.identity, batch.caption_id, batch.valid)


def positive_pairs(rows: PairLabels, columns: PairLabels) -> jax.Array:
    """Pairs of one identity, or of one caption, besides each item's own pair.

    Template captions repeat, and an identity has many views: neither may count as a negative.

    Returns:
        (B, C) bool for B rows and C columns; padding is not masked.
    """
    identity = rows.identity[:, None]
    same_identity = (identity == columns.identity) & (identity != NO_IDENTITY)
    return same_identity | (rows.caption_id[:, None] == columns.caption_id)
