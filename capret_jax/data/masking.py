"""Masking of caption tokens for masked language modelling, as in X2-VLM."""

from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from capret_jax.config import LossConfig
from capret_jax.data.batch import IGNORED_LABEL
from capret_jax.data.tokenizer import CaptionEncoder, Tokens

SKIP_GRAM_PROBABILITY = 0.2
SKIP_GRAM_SIZE = 3
_KEEP, _RANDOM = 0.1, 0.1  # the rest, 80 %, becomes [MASK]


class MaskedCaption(NamedTuple):
    """A caption with masked tokens.

    Attributes:
        ids: (T,) int32 tokens of the masked caption; (T + P,) with inserted [MASK] tokens.
        positions: (P,) int32 positions to predict, ascending; padded with 0.
        labels: (P,) int32 true tokens at these positions; padded with `IGNORED_LABEL`.
    """

    ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray


class Masker:
    """Masks random words, or tokens, of captions; a caption without words is not masked."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: LossConfig = LossConfig(),
        prompt_tokens: int = 0,
    ):
        """
        Args:
            tokenizer: the captions' tokenizer.
            config: share and number of masked tokens, and how they are drawn and replaced. With
                `mlm_causal` [SEP] is masked, too, so that a captioner learns to end a caption.
            prompt_tokens: number of tokens behind [CLS] that are never masked.
        """
        self._config, self._first = config, 1 + prompt_tokens
        self._mask_id, self._pad_id = tokenizer.mask_token_id, tokenizer.pad_token_id
        self._vocabulary = len(tokenizer)
        special = set(tokenizer.all_special_ids)
        self._special = np.array([i in special for i in range(self._vocabulary)])
        self._end = tokenizer.sep_token_id if config.mlm_causal else None
        # X2-VLM draws replacements from the whole vocabulary.
        everything = config.mlm_spans == "x2vlm"
        self._replacements = np.flatnonzero(~self._special | everything)
        pieces = tokenizer.convert_ids_to_tokens(list(range(self._vocabulary)))
        self._continues = np.array([piece.startswith("##") for piece in pieces])

    def __call__(self, tokens: Tokens, rng: np.random.Generator) -> MaskedCaption:
        """Masks a caption at random; [CLS], the prompt and padding are never masked."""
        chosen = self._choose(tokens, rng)
        most, labels = self._config.mlm_max, tokens.ids[chosen]
        ids, positions = tokens.ids, chosen
        if self._config.mlm_insert:
            ids, positions = insert_masks(ids, chosen, self._mask_id)
            ids = np.append(ids, np.full(most - len(chosen), self._pad_id, np.int32))
        else:
            ids = self._replaced(ids, chosen, rng)
        padding = (0, most - len(chosen))
        return MaskedCaption(
            ids,
            np.pad(positions, padding),
            np.pad(labels, padding, constant_values=IGNORED_LABEL),
        )

    def _choose(self, tokens: Tokens, rng: np.random.Generator) -> np.ndarray:
        """Draws the positions to predict, (n,) int32, ascending."""
        config, count = self._config, int(tokens.mask.sum())
        chosen: list[int] = []
        if self._special[tokens.ids[self._first : count]].all():
            pass
        elif config.mlm_spans == "words":
            words = self._words(tokens.ids)
            budget = _budget(sum(map(len, words)), config)
            chosen = _draw_words(words, budget, rng)
        else:
            budget = _budget(count - self._first + 1, config)
            continues = self._continues[tokens.ids[:count]]
            chosen = _draw_tokens(continues, self._first, budget, rng)
        return np.array(chosen, np.int32)

    def _replaced(self, ids: np.ndarray, chosen: np.ndarray, rng: np.random.Generator):
        ids = ids.copy()
        for position in chosen:
            draw = rng.random()
            if draw >= _KEEP + _RANDOM:
                ids[position] = self._mask_id
            elif draw >= _KEEP:
                ids[position] = rng.choice(self._replacements)
        return ids

    def _words(self, ids: np.ndarray) -> list[list[int]]:
        """Lists the positions of each word, including its continuation pieces."""
        words: list[list[int]] = []
        ordinary = ~self._special[ids]
        if self._end is not None:
            ordinary |= ids == self._end
        ordinary[: self._first] = False
        for position in np.flatnonzero(ordinary).tolist():
            if words and self._continues[ids[position]]:
                words[-1].append(position)
            else:
                words.append([position])
        return words


class MaskedCaptions:
    """Captions with their prompt, masked for the masked language model."""

    def __init__(self, encode: CaptionEncoder, config: LossConfig):
        """
        Args:
            encode: encoder of captions, with the prompt if there is one.
            config: settings of `Masker`.
        """
        self._encode = encode
        self._masker = Masker(encode.tokenizer, config, len(encode.prompt_ids) - 1)

    def __call__(self, caption: str, rng: np.random.Generator) -> MaskedCaption:
        """Tokenises and masks a caption."""
        return self._masker(self._encode(caption), rng)


def insert_masks(
    ids: np.ndarray, chosen: np.ndarray, mask_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inserts [MASK] before tokens of a text, which stay in it.

    Args:
        ids: (T,) int tokens.
        chosen: (n,) int positions of the tokens, ascending.
        mask_id: id of [MASK].

    Returns:
        (T + n,) tokens and the (n,) int32 positions of [MASK] in them.
    """
    positions = chosen + np.arange(len(chosen), dtype=np.int32)
    return np.insert(ids, chosen, mask_id), positions


def _budget(tokens: int, config: LossConfig) -> int:
    return min(config.mlm_max, max(1, round(config.mlm_probability * tokens)))


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


def _draw_tokens(
    continues: np.ndarray, first: int, budget: int, rng: np.random.Generator
) -> list[int]:
    """Draws tokens and runs of tokens, completed to whole words, until they reach the budget.

    Args:
        continues: (n,) bool for the tokens of a text, padding excluded: True for those that
            continue a word.
        first: position of the first token that may be drawn.
        budget: number of positions at most; of more, random ones are dropped.
        rng: source of the draws.

    Returns:
        The positions, sorted.
    """
    count, chosen = len(continues), set[int]()
    for position in rng.permutation(np.arange(first, count)).tolist():
        if len(chosen) >= budget:
            break
        if position in chosen:
            continue
        start, stop = position, position + 1
        if rng.random() < SKIP_GRAM_PROBABILITY:
            stop = position + int(rng.integers(2, SKIP_GRAM_SIZE + 1))
        while start > first and continues[start]:
            start -= 1
        while stop < count and continues[stop]:
            stop += 1
        chosen.update(range(start, min(stop, count)))
    return sorted(rng.permutation(sorted(chosen))[:budget].tolist())
