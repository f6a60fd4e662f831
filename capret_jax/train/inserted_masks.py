"""Attention and positions of texts with inserted [MASK] tokens, which train a captioner.

A [MASK] stands before the token that it predicts, at the same position, and no other token sees it.
So it sees what a captioner sees that is about to write this token: all tokens before it, and itself
(FG-free training; Findings of ACL 2021, 393).
"""

import jax
import jax.numpy as jnp

from capret_jax.data.batch import IGNORED_LABEL


def inserted_masks(positions: jax.Array, labels: jax.Array, length: int) -> jax.Array:
    """Marks the inserted [MASK] tokens of texts.

    Args:
        positions: (B, P) int positions in the text.
        labels: (B, P) int tokens that they predict, `IGNORED_LABEL` for unused ones.
        length: T, tokens of a text, inserted ones included.

    Returns:
        (B, T) bool.
    """
    used = jnp.where(labels == IGNORED_LABEL, length, positions)
    return jnp.any(used[:, :, None] == jnp.arange(length), axis=1)


def shared_positions(inserted: jax.Array, limit: int) -> jax.Array:
    """Returns the (B, T) int32 positions of tokens; a [MASK] shares that of the next token.

    Args:
        inserted: (B, T) bool from `inserted_masks`.
        limit: number of positions of the text without [MASK]; padding beyond them has the last one.
    """
    counts = jnp.cumsum(inserted, axis=1, dtype=jnp.int32) - inserted
    return jnp.minimum(jnp.arange(inserted.shape[1]) - counts, limit - 1)


def insertion_mask(inserted: jax.Array) -> jax.Array:
    """Returns the (B, T, T) bool causal mask that hides each [MASK] from all other tokens.

    Args:
        inserted: (B, T) bool from `inserted_masks`.
    """
    length = inserted.shape[1]
    itself = jnp.eye(length, dtype=bool)
    return jnp.tril(jnp.ones((length, length), bool)) & (~inserted[:, None, :] | itself)
