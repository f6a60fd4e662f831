"""Fingerprints of what a checkpoint was made from, and checksums of what is in it."""

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from capret_jax.data.items import ItemTable
from capret_jax.errors import InputError

_ROWS_AT_ONCE = 65_536


class Vocabulary(Protocol):
    """The part of a tokenizer that its fingerprint depends on."""

    def get_vocab(self) -> dict[str, int]: ...


def vocabulary_fingerprint(tokenizer: Vocabulary) -> str:
    """Returns the SHA-256 of a tokenizer's tokens and their ids."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(repr(tokens).encode()).hexdigest()


def items_fingerprint(items: ItemTable, identities: np.ndarray) -> dict[str, Any]:
    """Describes the training items, by which classes and the order of batches are numbered.

    Args:
        items: item table of the training split.
        identities: (n,) int class of each item as training numbers it.

    Returns:
        "items" and "identities", their numbers, and "sha256" of all columns but the boxes.
    """
    digest = hashlib.sha256()
    columns = [items.record, items.is_shop, identities, items["image_id"], items["number"]]
    for column in columns:
        digest.update(np.ascontiguousarray(column, np.int64).data)
    count = int(identities.max(initial=-1)) + 1
    return {"items": len(items), "identities": count, "sha256": digest.hexdigest()}


def table_fingerprint(table: np.ndarray) -> str:
    """Returns the SHA-256 of an array, which may be a memory map."""
    digest = hashlib.sha256(f"{table.dtype} {table.shape}".encode())
    for first in range(0, len(table), _ROWS_AT_ONCE):
        digest.update(np.ascontiguousarray(table[first : first + _ROWS_AT_ONCE]).data)
    return digest.hexdigest()


def check_vocabulary(saved: Mapping[str, Any], tokenizer: Vocabulary, name: str) -> None:
    """Checks that a tokenizer is the one that a model was trained with.

    Args:
        saved: fingerprints of a checkpoint; empty for one of a version without them.
        tokenizer: the tokenizer that is there now.
        name: its name or path, for the message.

    Raises:
        InputError: its tokens differ.
    """
    expected = saved.get("vocabulary", "")
    if expected and vocabulary_fingerprint(tokenizer) != expected:
        raise InputError(
            f"{name} does not have the tokens that the model was trained with: restore the file, "
            "or name the right tokenizer."
        )


def check_data(saved: Mapping[str, Any], current: Mapping[str, Any], workdir: str) -> None:
    """Checks that training goes on with the items, and the teacher, that it began with.

    Args:
        saved: fingerprints of a checkpoint; empty for one of a version without them.
        current: fingerprints of what is there now.
        workdir: folder of the run, for the message.

    Raises:
        InputError: the items differ, so that classes would have other numbers, or the teacher does.
    """
    before, now = saved.get("items"), current["items"]
    if before and dict(before) != dict(now):
        raise InputError(
            f"{workdir} was trained on {before['items']} items of {before['identities']} "
            f"identities, and these are {now['items']} of {now['identities']}, or others: "
            "restore the dataset, or choose another --workdir."
        )
    if saved.get("teacher", "") != current["teacher"] and "teacher" in saved:
        raise InputError(
            f"{workdir} was trained with other embeddings than those in data.teacher: restore the "
            "file, or choose another --workdir."
        )


def checksum(tree: Any) -> jax.Array:
    """Sums all bits of a tree of arrays, weighted by their places.

    A changed bit always changes the sum, since all weights are odd. It depends neither on the
    devices nor on how arrays are sharded over them.

    Returns:
        () uint32.
    """
    # One program for all leaves takes longer to compile than a training step. Moments of Adam share
    # the shapes of their parameters, and so the programs.
    sums = [
        _weighted_sum(leaf, np.uint32(2 * number + 1))
        for number, leaf in enumerate(jax.tree.leaves(tree))
    ]
    return jnp.sum(jnp.stack(sums), dtype=jnp.uint32) if sums else jnp.uint32(0)


@jax.jit
def _weighted_sum(leaf: jax.Array, first: jax.Array) -> jax.Array:
    """Sums the bits of an array, weighted by their places.

    Args:
        leaf: (...) of any dtype.
        first: () uint32, odd, the weight of the first element.
    """
    words = _words(leaf)
    weight = jnp.full(words.shape, first)
    for axis in range(words.ndim):
        place = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        weight = weight * jnp.uint32(2654435761) + 2 * place
    return (words * weight).sum(dtype=jnp.uint32)


def _words(leaf: jax.Array) -> jax.Array:
    """Returns the bits of an array as uint32."""
    if leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.integer):
        return leaf.astype(jnp.uint32)
    unsigned = {2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
