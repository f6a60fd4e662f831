"""Tokens of the texts of an evaluation."""

from collections.abc import Iterable

import numpy as np

from capret_jax.data.tokenizer import CaptionEncoder, Tokens


def stack_tokens(encode: CaptionEncoder, texts: Iterable[str]) -> Tokens:
    """Encodes n >= 1 texts.

    Args:
        encode: encoder of texts as T tokens.
        texts: the texts.

    Returns:
        (n, t) int32 ids and 0/1 mask; t <= T is the number of tokens of the longest text, since
        padding would cost as much as words.
    """
    # Copies, since views would keep the padding of all texts in memory.
    rows = [tokens.ids[: tokens.mask.sum()].copy() for tokens in map(encode, texts)]
    lengths = np.array([*map(len, rows)])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, encode.tokenizer.pad_token_id, np.int32)
    ids[mask] = np.concatenate(rows)
    return Tokens(ids, mask.astype(np.int32))
