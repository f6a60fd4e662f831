"""Rankings of the rows of a protocol, numbers of relevant items, and the published subset."""

import numpy as np
import pytest

from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.evaluation.protocol import GroundTruth, Protocol
from capret_jax.evaluation.ranking import rank
from capret_jax.retrieval.metrics import average_precision


@pytest.fixture
def protocol():
    """Queries 0..6 of identities 0, 0, 1, 2, 3, 1, 9; gallery rows 7..26 of identities 0 to 3."""
    gallery = np.repeat([0, 1, 2, 3], [7, 6, 5, 2])
    truth = GroundTruth([], [], "nothing")
    queries = np.arange(7)
    return Protocol(
        truth, queries, queries, 7 + np.arange(20), np.array([0, 0, 1, 2, 3, 1, 9]), gallery
    )


def test_rows_of_the_protocol_are_ranked(protocol):
    embeddings = np.random.default_rng(0).normal(size=(27, 8)).astype(np.float32)
    ranking = rank(protocol, embeddings, make_mesh(MeshConfig()))
    scores = embeddings[protocol.queries] @ embeddings[protocol.gallery].T
    np.testing.assert_array_equal(ranking.neighbours, np.argsort(-scores, axis=1))
    np.testing.assert_allclose(ranking.scores, -np.sort(-scores, axis=1), rtol=1e-5, atol=1e-6)
    identities = protocol.gallery_identity[ranking.neighbours]
    expected = average_precision(identities, protocol.query_identity)
    np.testing.assert_allclose(ranking.precision, expected)


def test_relevant_items_are_counted_and_the_subset_has_more_than_five(protocol):
    np.testing.assert_array_equal(protocol.relevant_counts(), [7, 7, 6, 5, 2, 6, 0])
    np.testing.assert_array_equal(protocol.published_subset(), [1, 1, 1, 0, 0, 1, 0])
