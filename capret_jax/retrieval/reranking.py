"""Re-ranking: the nearest candidates ordered anew by how well they match a text (ITM).

The image embedding compares two pictures by one vector each; the fusion encoder reads a text and a
picture together, which says more and costs a pass per pair. So it scores the k nearest candidates
alone, and its match probability is added to their cosine.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.retrieval.engines import Neighbours
from capret_jax.retrieval.vision_tokens import VisionTokens

# Pairs scored at once.
_PAIRS = 64
# Weights of the match probability beside the cosine that are tried.
WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

# (n,) rows of the item table -> their vision tokens.
TokenSource = Callable[[np.ndarray], VisionTokens]


class MatchingModel(Protocol):
    """The methods of `LoadedModel` that matching uses."""

    def encode_text(self, token_ids: Any, token_mask: Any) -> jax.Array: ...
    def fuse(self, text: Any, token_mask: Any, image: Any, image_mask: Any) -> jax.Array: ...
    def match_logits(self, fused: Any) -> jax.Array: ...


class Matcher:
    """Match probabilities of texts and pictures."""

    def __init__(self, model: MatchingModel, encode: CaptionEncoder):
        """
        Args:
            model: trained to match.
            encode: texts -> tokens.
        """
        self._model, self._encode = model, encode

    def candidates(self, texts: Sequence[str], rows: np.ndarray, tokens: TokenSource) -> np.ndarray:
        """Scores each text with each of its candidates.

        Args:
            texts: Q of them.
            rows: (Q, k) rows of the candidates in the item table.
            tokens: their vision tokens.

        Returns:
            (Q, k) float32 probabilities.
        """
        if not rows.size:
            return np.zeros(rows.shape, np.float32)
        # Many queries may share few texts.
        distinct, place = np.unique(np.asarray(texts, object), return_inverse=True)
        encoded = [self._encode(text) for text in distinct]
        ids, mask = (np.stack(column) for column in zip(*encoded, strict=True))
        owner, flat = np.repeat(place, rows.shape[1]), rows.reshape(-1)
        states = self._text_states(ids, mask)
        scores = []
        for chunk in _chunks(len(flat)):
            image = tokens(flat[chunk])
            arrays = states[owner[chunk]], mask[owner[chunk]], *image
            scores.append(self._match(*_padded(*arrays))[: len(flat[chunk])])
        return np.concatenate(scores).reshape(rows.shape)

    def _text_states(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        parts = []
        for chunk in _chunks(len(ids)):
            states = self._model.encode_text(*_padded(ids[chunk], mask[chunk]))
            parts.append(np.asarray(states)[: len(ids[chunk])])
        return np.concatenate(parts)

    def _match(self, text, token_mask, states, mask) -> np.ndarray:
        fused = self._model.fuse(
            text, token_mask, states.astype(np.float32), mask.astype(np.float32)
        )
        return np.asarray(jax.nn.softmax(self._model.match_logits(fused))[:, 1])


def best_phrases(
    matcher: Matcher, phrases: Sequence[str], rows: np.ndarray, tokens: TokenSource
) -> np.ndarray:
    """(n,) int64, for each item the phrase that matches it best."""
    # Item by item, so that tokens are read once.
    texts, every = list(phrases) * len(rows), np.repeat(rows, len(phrases))[:, None]
    match = matcher.candidates(texts, every, tokens)
    return match.reshape(len(rows), len(phrases)).argmax(axis=1)


def rerank(neighbours: Neighbours, match: np.ndarray, weight: float) -> Neighbours:
    """Orders the first candidates by cosine + weight x match probability; the rest stays behind.

    Args:
        neighbours: (Q, K), cosines as scores.
        match: (Q, k <= K) probabilities of the first k.
        weight: of the probabilities.

    Returns:
        (Q, K); the scores of the first k are the sums.
    """
    k = match.shape[1]
    scores = neighbours.scores[:, :k] + weight * match
    order = np.argsort(-scores, axis=1, kind="stable")
    rows, scores = (np.take_along_axis(x, order, axis=1) for x in (neighbours.rows[:, :k], scores))
    return Neighbours(
        np.concatenate([rows, neighbours.rows[:, k:]], axis=1),
        np.concatenate([scores, neighbours.scores[:, k:]], axis=1),
    )


class CrossFitted(NamedTuple):
    """A re-ranking whose weight was never chosen on the query that it is applied to.

    Attributes:
        neighbours: of all queries.
        weights: chosen on each half of the queries, for the other.
    """

    neighbours: Neighbours
    weights: tuple[float, float]


def cross_fit(
    neighbours: Neighbours,
    match: np.ndarray,
    quality: Callable[[Neighbours], np.ndarray],
    half: np.ndarray,
) -> CrossFitted:
    """Re-ranks each half of the queries with the weight that is best for the other half.

    Args:
        neighbours: (Q, K).
        match: (Q, k).
        quality: a ranking of all queries -> (Q,) values whose mean is maximised.
        half: (Q,) bool, True for the first half.
    """
    ranked = {weight: rerank(neighbours, match, weight) for weight in WEIGHTS}
    by_weight = {weight: np.nan_to_num(quality(each)) for weight, each in ranked.items()}

    def best(queries: np.ndarray) -> float:
        # A weight that gains nothing is not taken.
        return max(WEIGHTS, key=lambda w: (by_weight[w][queries].sum(), -w))

    weights = best(~half), best(half)
    pair = zip(ranked[weights[0]], ranked[weights[1]], strict=True)
    return CrossFitted(Neighbours(*(np.where(half[:, None], a, b) for a, b in pair)), weights)


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + _PAIRS) for start in range(0, count, _PAIRS)]


def _padded(*arrays: np.ndarray) -> list[np.ndarray]:
    """Arrays with their last row repeated up to `_PAIRS`, so that one shape is compiled."""
    return [np.concatenate([x, np.repeat(x[-1:], _PAIRS - len(x), axis=0)]) for x in arrays]
