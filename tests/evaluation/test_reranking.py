"""Average precision of re-ranked candidates, against that of the whole ranking."""

import numpy as np

from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.evaluation.protocol import GroundTruth, Protocol
from capret_jax.evaluation.ranking import RerankedMetrics, rank
from capret_jax.retrieval.engines import Neighbours
from capret_jax.retrieval.metrics import average_precision, first_hit


def test_precision_after_reordering_is_that_of_the_whole_ranking():
    rng = np.random.default_rng(0)
    gallery_identity = rng.integers(0, 4, 30)
    queries = np.arange(8)
    identity = np.array([0, 1, 2, 3, 0, 1, 2, 9])  # the gallery lacks 9
    protocol = Protocol(
        GroundTruth([], [], "nothing"),
        queries,
        queries,
        8 + np.arange(30),
        identity,
        gallery_identity,
    )
    embeddings = rng.normal(size=(38, 5)).astype(np.float32)
    ranking = rank(protocol, embeddings, make_mesh(MeshConfig()))
    k = 6
    rows = ranking.neighbours.copy()
    shuffled = rng.permuted(rows[:, :k], axis=1)
    rows[:, :k] = shuffled
    better = RerankedMetrics(protocol, ranking, k)(Neighbours(rows, ranking.scores))
    whole = np.argsort(-(embeddings[:8] @ embeddings[8:].T), axis=1)
    whole[:, :k] = shuffled
    identities = gallery_identity[whole]
    expected = average_precision(identities, identity)
    np.testing.assert_allclose(better.precision[:7], expected[:7])
    np.testing.assert_array_equal(better.first, first_hit(identities, identity))
    assert not np.allclose(better.precision[:7], ranking.precision[:7])
