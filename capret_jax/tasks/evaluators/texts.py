"""Tokens of the texts of an evaluation."""

from collections.abc import Callable, Iterable

import numpy as np

from capret_jax.data.tokenizer import Tokens


def stack_tokens(encode: Callable[[str], Tokens], texts: Iterable[str]) -> Tokens:
    """Encodes n >= 1 texts.

    Args:
        encode: encoder of texts as T tokens.
        texts: the texts.

    Returns:
        (n, t) int32 ids and 0/1 mask; t <= T is the number of tokens of the longest text, since
        padding would cost as much as words.
    """
    ids, mask = (np.stack(column) for column in zip(*map(encode, texts), strict=True))
    longest = int(mask.sum(axis=1).max())
    return Tokens(ids[:, :longest], mask[:, :longest])
