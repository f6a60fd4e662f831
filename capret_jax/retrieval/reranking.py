"""Re-ranking: of the nearest candidates, those first that match the query's words (ITM).

The image embedding compares two pictures position by position of a vector; the fusion encoder reads
words and a picture together, which says more and costs a pass per pair. So it judges the k nearest
alone, and its match probability is added to their cosine.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.retrieval.engines import Neighbours
from capret_jax.retrieval.vision_tokens import VisionTokens

# Pairs judged at once.
_PAIRS = 64
# Tried as weights of the match probability beside the cosine.
WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Model(Protocol):
    """The methods of `loading.LoadedModel` that it takes."""

    def encode_text(self, token_ids: Any, token_mask: Any) -> jax.Array: ...
    def fuse(self, text: Any, token_mask: Any, image: Any, image_mask: Any) -> jax.Array: ...
    def match_logits(self, fused: Any) -> jax.Array: ...


class Matcher:
    """Match probabilities of texts with pictures."""

    def __init__(self, model: Model, encode: CaptionEncoder):
        """
        Args:
            model: trained to match.
            encode: texts -> tokens.
        """
        self._model, self._encode = model, encode

    def candidates(
        self, texts: Sequence[str], rows: np.ndarray, tokens: Callable[[np.ndarray], VisionTokens]
    ) -> np.ndarray:
        """Of each query's text with each of its candidates.

        Args:
            texts: Q of them.
            rows: (Q, k) of the gallery.
            tokens: of rows of the gallery, `MemoryTokens` for instance.

        Returns:
            (Q, k) float32.
        """
        # Many queries may share few texts.
        distinct, place = np.unique(np.asarray(texts, object), return_inverse=True)
        words = [self._encode(text) for text in distinct]
        ids, mask = (np.stack(column) for column in zip(*words, strict=True))
        owner, flat = np.repeat(place, rows.shape[1]), rows.reshape(-1)
        states = np.concatenate(
            [
                np.asarray(self._model.encode_text(*_filled(_PAIRS, ids[chunk], mask[chunk])))[
                    : len(ids[chunk])
                ]
                for chunk in _chunks(len(ids))
            ]
        )
        found = []
        for chunk in _chunks(len(flat)):
            image = tokens(flat[chunk])
            arrays = states[owner[chunk]], mask[owner[chunk]], *image
            found.append(self._match(*_filled(_PAIRS, *arrays))[: len(flat[chunk])])
        return np.concatenate(found).reshape(rows.shape)

    def _match(self, text, token_mask, states, mask) -> np.ndarray:
        fused = self._model.fuse(
            text, token_mask, states.astype(np.float32), mask.astype(np.float32)
        )
        return np.asarray(jax.nn.softmax(self._model.match_logits(fused))[:, 1])


def best_phrases(
    matcher: Matcher,
    phrases: Sequence[str],
    rows: np.ndarray,
    tokens: Callable[[np.ndarray], VisionTokens],
) -> np.ndarray:
    """(n,) int64, for each item the phrase that matches it best: its words when nobody said any."""
    # Item by item, so that tokens are asked for once.
    texts, every = list(phrases) * len(rows), np.repeat(rows, len(phrases))[:, None]
    match = matcher.candidates(texts, every, tokens)
    return match.reshape(len(rows), len(phrases)).argmax(axis=1)


def rerank(found: Neighbours, match: np.ndarray, weight: float) -> Neighbours:
    """The first candidates in the order of cosine + weight x match probability, the rest behind.

    Args:
        found: (Q, K), cosines as scores.
        match: (Q, k <= K) probabilities of the first k.
        weight: of them.

    Returns:
        (Q, K); the scores of the first k are the sums.
    """
    k = match.shape[1]
    scores = found.scores[:, :k] + weight * match
    order = np.argsort(-scores, axis=1, kind="stable")
    rows, scores = (np.take_along_axis(x, order, axis=1) for x in (found.rows[:, :k], scores))
    return Neighbours(
        np.concatenate([rows, found.rows[:, k:]], axis=1),
        np.concatenate([scores, found.scores[:, k:]], axis=1),
    )


class Fitted(NamedTuple):
    """A re-ranking whose weight no query chose for itself.

    Attributes:
        found: of all queries.
        weights: chosen on each half of the queries, for the other.
    """

    found: Neighbours
    weights: tuple[float, float]


def cross_fit(
    found: Neighbours,
    match: np.ndarray,
    quality: Callable[[Neighbours], np.ndarray],
    half: np.ndarray,
) -> Fitted:
    """Re-ranks each half of the queries with the weight that is best for the other half.

    Args:
        found: (Q, K).
        match: (Q, k).
        quality: a ranking of all queries -> (Q,) what to maximise the mean of.
        half: (Q,) bool.
    """
    ranked = {weight: rerank(found, match, weight) for weight in WEIGHTS}
    by_weight = {weight: np.nan_to_num(quality(each)) for weight, each in ranked.items()}

    def best(queries: np.ndarray) -> float:
        # A weight that gains nothing is not taken.
        return max(WEIGHTS, key=lambda w: (by_weight[w][queries].sum(), -w))

    weights = best(~half), best(half)
    mine, others = ranked[weights[0]], ranked[weights[1]]
    chosen = (np.where(half[:, None], a, b) for a, b in zip(mine, others, strict=True))
    return Fitted(Neighbours(*chosen), weights)


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + _PAIRS) for start in range(0, count, _PAIRS)]


def _filled(rows: int, *arrays: np.ndarray) -> list[np.ndarray]:
    """Arrays with their last row repeated up to `rows`, so that one shape is compiled."""
    return [np.concatenate([x, np.repeat(x[-1:], rows - len(x), axis=0)]) for x in arrays]
