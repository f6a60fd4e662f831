"""Masking of caption tokens for masked language modelling, as in X2-VLM."""

from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from capret_jax.data.batch import IGNORED_LABEL
from capret_jax.data.tokenizer import Tokens

MASK_PROBABILITY = 0.5
MAX_MASKED = 12
SKIP_GRAM_PROBABILITY = 0.2
SKIP_GRAM_SIZE = 3
_KEEP, _RANDOM = 0.1, 0.1  # the rest, 80 %, becomes [MASK]


class Masked(NamedTuple):
    """A caption with masked tokens.

    Attributes:
        ids: (T,) int32 tokens of the masked caption.
        positions: (M,) int32 positions to predict; padded with 0.
        labels: (M,) int32 true tokens at these positions; padded with `IGNORED_LABEL`.
    """

    ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray


class Masker:
    """Masks whole words: half of the tokens, 12 at most, some as runs of up to 3 words."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: bool = False):
        """
        Args:
            tokenizer: the captions' tokenizer.
            ends: masks [SEP] as one more word, so that a captioner learns to end a caption.
        """
        self._mask_id = tokenizer.mask_token_id
        self._vocabulary = len(tokenizer)
        special = set(tokenizer.all_special_ids)
        self._special = np.array([i in special for i in range(self._vocabulary)])
        self._end = tokenizer.sep_token_id if ends else None
        self._ordinary = np.flatnonzero(~self._special)
        pieces = tokenizer.convert_ids_to_tokens(list(range(self._vocabulary)))
        self._continues = np.array([piece.startswith("##") for piece in pieces])

    def __call__(self, tokens: Tokens, rng: np.random.Generator) -> Masked:
        """Masks a caption at random; [CLS] and padding are never masked."""
        words = self._words(tokens.ids)
        total = sum(map(len, words))
        budget = min(MAX_MASKED, max(1, round(MASK_PROBABILITY * total)))
        chosen = _draw_words(words, budget, rng)
        ids = tokens.ids.copy()
        for position in chosen:
            draw = rng.random()
            if draw >= _KEEP + _RANDOM:
                ids[position] = self._mask_id
            elif draw >= _KEEP:
                ids[position] = rng.choice(self._ordinary)
        positions = np.zeros(MAX_MASKED, np.int32)
        labels = np.full(MAX_MASKED, IGNORED_LABEL, np.int32)
        positions[: len(chosen)] = chosen
        labels[: len(chosen)] = tokens.ids[chosen]
        return Masked(ids, positions, labels)

    def _words(self, ids: np.ndarray) -> list[list[int]]:
        """Lists the positions of each word, including its continuation pieces."""
        words: list[list[int]] = []
        ordinary = ~self._special[ids]
        if self._end is not None:
            ordinary |= ids == self._end
        for position in np.flatnonzero(ordinary).tolist():
            if words and self._continues[ids[position]]:
                words[-1].append(position)
            else:
                words.append([position])
        return words


def _draw_words(words: list[list[int]], budget: int, rng: np.random.Generator) -> list[int]:
    """Draws words and runs of words; returns at most `budget` positions, sorted."""
    chosen: set[int] = set()
    for start in rng.permutation(len(words)):
        run = 1
        if rng.random() < SKIP_GRAM_PROBABILITY:
            run = int(rng.integers(2, SKIP_GRAM_SIZE + 1))
        positions = {p for word in words[start : start + run] for p in word}
        if len(chosen | positions) <= budget:
            chosen |= positions
    return sorted(chosen)
