"""Exact rankings of the gallery, and their metrics per query."""

import dataclasses

import numpy as np

from capret_jax.evaluation.protocol import RESULTS_PER_QUERY, Protocol
from capret_jax.retrieval.engines import ExactEngine, Neighbours
from capret_jax.retrieval.metrics import average_precision, first_hit

# Queries ranked in one call.
_CHUNK = 512
# Neighbours of each query that are kept.
_KEPT = RESULTS_PER_QUERY


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Rankings of the gallery for Q queries.

    Attributes:
        neighbours: (Q, K) int64 positions in the gallery, best first.
        scores: (Q, K) float32 inner products of the neighbours with the query.
        precision: (Q,) float64 average precision over the whole gallery.
        first: (Q,) int64 rank of the first relevant item, from 0.
    """

    neighbours: np.ndarray
    scores: np.ndarray
    precision: np.ndarray
    first: np.ndarray


def rank(protocol: Protocol, embeddings: np.ndarray) -> Ranking:
    """Searches the whole gallery exactly for every query.

    Args:
        protocol: rows of the queries and of the gallery.
        embeddings: (n, E) float32 by row of the item table, compared by inner products.
    """
    queries, gallery = embeddings[protocol.queries], embeddings[protocol.gallery]
    # In chunks: all of DeepFashion2's 12 k x 37 k ranks at once would take 4 GB.
    chunks = [
        _rank_chunk(
            queries[rows], gallery, protocol.query_identity[rows], protocol.gallery_identity
        )
        for rows in (slice(i, i + _CHUNK) for i in range(0, len(queries), _CHUNK))
    ]
    return Ranking(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


def _rank_chunk(queries, gallery, query_identity, gallery_identity):
    order, scores = ExactEngine(gallery).search(queries, len(gallery))
    identities = gallery_identity[order]
    return (
        order[:, :_KEPT],
        scores[:, :_KEPT],
        average_precision(identities, query_identity),
        first_hit(identities, query_identity),
    )


class RerankedMetrics:
    """Metrics of rankings that reorder the first k neighbours of a known ranking."""

    def __init__(self, protocol: Protocol, ranking: Ranking, k: int):
        """
        Args:
            protocol: rows and identities of the queries and of the gallery.
            ranking: the known ranking.
            k: number of neighbours of each query that are reordered.
        """
        self._protocol, self._ranking, self._k = protocol, ranking, k
        self._before = self._precision(ranking.neighbours)

    def __call__(self, neighbours: Neighbours) -> Ranking:
        """Returns the ranking with (Q, K) reordered neighbours."""
        relevant = self._relevant(neighbours.rows)
        first = np.where(relevant.any(axis=1), relevant.argmax(axis=1), self._ranking.first)
        change = self._precision(neighbours.rows) - self._before
        precision = self._ranking.precision + change
        return Ranking(neighbours.rows, neighbours.scores, precision, first)

    def _relevant(self, rows: np.ndarray) -> np.ndarray:
        identities = self._protocol.gallery_identity[rows[:, : self._k]]
        return identities == self._protocol.query_identity[:, None]

    def _precision(self, rows: np.ndarray) -> np.ndarray:
        """Returns the (Q,) contributions of the first k ranks to the average precision."""
        relevant = self._relevant(rows)
        precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
        return (precision * relevant).sum(axis=1) / np.maximum(self._protocol.relevant_counts(), 1)
