"""Re-ranking: the nearest candidates reordered by their image-text match probability (ITM).

Embeddings compare two pictures by one vector each. The fusion encoder attends from a text to all
tokens of a picture, which is more accurate and costs a forward pass per pair. So it scores only the
k nearest candidates, and its match probability is added to their cosine.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.distributed.local_mesh import pad_rows
from capret_jax.distributed.mesh import batch_sharding
from capret_jax.retrieval.engines import Neighbours
from capret_jax.retrieval.vision_tokens import VisionTokens

# Pairs scored in one call, or a few more where devices do not divide them.
_PAIRS = 64
# Candidate weights of the match probability, which is added to the cosine.
WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

# A function from (n,) rows of the item table to their vision tokens.
TokenSource = Callable[[np.ndarray], VisionTokens]


class MatchingModel(Protocol):
    """The methods of `LoadedModel` that matching uses."""

    def encode_text(self, token_ids: Any, token_mask: Any) -> jax.Array: ...
    def fuse(self, text: Any, token_mask: Any, image: Any, image_mask: Any) -> jax.Array: ...
    def match_logits(self, fused: Any) -> jax.Array: ...


class Matcher:
    """Computes match probabilities of texts and pictures."""

    def __init__(self, model: MatchingModel, encode: CaptionEncoder, mesh: Mesh | None = None):
        """
        Args:
            model: model with a trained matching head, its parameters on all devices of the mesh.
            encode: encoder of texts as tokens.
            mesh: mesh of this process's devices, which pairs are split over; None for the device of
                the parameters.
        """
        self._model, self._encode, self._mesh = model, encode, mesh
        self._pairs = _PAIRS if mesh is None else -(-_PAIRS // mesh.size) * mesh.size

    def candidates(self, texts: Sequence[str], rows: np.ndarray, tokens: TokenSource) -> np.ndarray:
        """Scores each text with each of its candidates.

        Args:
            texts: Q texts.
            rows: (Q, k) int rows of the candidates in the item table.
            tokens: source of the candidates' vision tokens.

        Returns:
            (Q, k) float32 match probabilities.
        """
        if not rows.size:
            return np.zeros(rows.shape, np.float32)
        # Each distinct text is encoded once: many queries may share a few.
        distinct, place = np.unique(np.asarray(texts, object), return_inverse=True)
        encoded = [self._encode(text) for text in distinct]
        ids, mask = (np.stack(column) for column in zip(*encoded, strict=True))
        text, flat = np.repeat(place, rows.shape[1]), rows.reshape(-1)
        states = self._text_states(ids, mask)
        scores = []
        for chunk in self._chunks(len(flat)):
            states_of_chunk, image_mask = tokens(flat[chunk])
            image = states_of_chunk.astype(np.float32), image_mask.astype(np.float32)
            arrays = states[text[chunk]], mask[text[chunk]], *image
            scores.append(self._match(*self._placed(*arrays))[: len(flat[chunk])])
        return np.concatenate(scores).reshape(rows.shape)

    def _text_states(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        parts = []
        for chunk in self._chunks(len(ids)):
            states = self._model.encode_text(*self._placed(ids[chunk], mask[chunk]))
            parts.append(np.asarray(states)[: len(ids[chunk])])
        return np.concatenate(parts)

    def _match(self, text, token_mask, states, mask) -> np.ndarray:
        fused = self._model.fuse(text, token_mask, states, mask)
        return np.asarray(jax.nn.softmax(self._model.match_logits(fused))[:, 1])

    def _chunks(self, count: int) -> list[slice]:
        return [slice(start, start + self._pairs) for start in range(0, count, self._pairs)]

    def _placed(self, *arrays: np.ndarray) -> list[Any]:
        """Repeats the last row up to a number of rows, so that one shape is compiled."""
        padded = [pad_rows(array, self._pairs) for array in arrays]
        if self._mesh is None:
            return padded
        return jax.device_put(padded, batch_sharding(self._mesh))


def best_phrases(
    matcher: Matcher, phrases: Sequence[str], rows: np.ndarray, tokens: TokenSource
) -> np.ndarray:
    """Finds the phrase that matches each item best.

    Args:
        matcher: matcher of texts and pictures.
        phrases: phrases to choose from.
        rows: (n,) int rows of the items in the item table.
        tokens: source of the items' vision tokens.

    Returns:
        (n,) int64 positions in `phrases`.
    """
    # All phrases of an item are adjacent, so that few items' tokens are read at a time.
    texts, repeated = list(phrases) * len(rows), np.repeat(rows, len(phrases))[:, None]
    match = matcher.candidates(texts, repeated, tokens)
    return match.reshape(len(rows), len(phrases)).argmax(axis=1)


def rerank(neighbours: Neighbours, match: np.ndarray, weight: float) -> Neighbours:
    """Orders the first k candidates by cosine + weight x match probability; the rest is unchanged.

    Args:
        neighbours: (Q, K) neighbours with their cosines as scores.
        match: (Q, k) match probabilities of the first k <= K neighbours.
        weight: weight of the probabilities.

    Returns:
        (Q, K) neighbours; the scores of the first k are the sums.
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
    """A re-ranking whose weight for a query was chosen on other queries.

    Attributes:
        neighbours: (Q, K) re-ranked neighbours of all queries.
        weights: weight of the first half of the queries, and of the second.
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
        neighbours: (Q, K) neighbours with their cosines as scores.
        match: (Q, k) match probabilities of the first k neighbours.
        quality: function from neighbours of all queries to (Q,) values whose mean is maximised.
        half: (Q,) bool, True for queries of the first half.
    """
    ranked = {weight: rerank(neighbours, match, weight) for weight in WEIGHTS}
    by_weight = {weight: np.nan_to_num(quality(order)) for weight, order in ranked.items()}

    def best(queries: np.ndarray) -> float:
        # The smallest of equally good weights.
        return max(WEIGHTS, key=lambda w: (by_weight[w][queries].sum(), -w))

    weights = best(~half), best(half)
    pair = zip(ranked[weights[0]], ranked[weights[1]], strict=True)
    return CrossFitted(Neighbours(*(np.where(half[:, None], a, b) for a, b in pair)), weights)
