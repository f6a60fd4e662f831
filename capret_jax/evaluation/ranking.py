"""Exact rankings of the gallery, and their metrics per query."""

import numpy as np
from jax.sharding import Mesh

from capret_jax.evaluation.mesh_ranking import LabelledEmbeddings, Ranking, rank_on_mesh
from capret_jax.evaluation.protocol import RESULTS_PER_QUERY, Protocol
from capret_jax.retrieval.engines import Neighbours


def rank(protocol: Protocol, embeddings: np.ndarray, mesh: Mesh) -> Ranking:
    """Searches the whole gallery exactly for every query, on all devices of a mesh.

    Every process of the mesh has to call it.

    Args:
        protocol: rows of the queries and of the gallery.
        embeddings: (n, E) float32 by row of the item table, compared by inner products.
        mesh: mesh of all devices of all processes.

    Returns:
        The ranking, with the neighbours that the official result file has.
    """
    return rank_on_mesh(
        mesh,
        LabelledEmbeddings(embeddings[protocol.queries], protocol.query_identity),
        LabelledEmbeddings(embeddings[protocol.gallery], protocol.gallery_identity),
        RESULTS_PER_QUERY,
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
