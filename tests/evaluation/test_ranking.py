"""Rankings in chunks, numbers of relevant items, and the published subset of queries."""

import numpy as np
import pytest

from capret_jax.evaluation import ranking
from capret_jax.evaluation.protocol import GroundTruth, Protocol
from capret_jax.evaluation.ranking import rank
from capret_jax.retrieval import engines


@pytest.fixture
def protocol():
    """Queries 0..6 of identities 0, 0, 1, 2, 3, 1, 9; gallery rows 7..26 of identities 0 to 3."""
    gallery = np.repeat([0, 1, 2, 3], [7, 6, 5, 2])
    truth = GroundTruth([], [], "nothing")
    queries = np.arange(7)
    return Protocol(
        truth, queries, queries, 7 + np.arange(20), np.array([0, 0, 1, 2, 3, 1, 9]), gallery
    )


def test_chunks_change_nothing(protocol, monkeypatch):
    embeddings = np.random.default_rng(0).normal(size=(27, 8)).astype(np.float32)
    whole = rank(protocol, embeddings)
    monkeypatch.setattr(ranking, "_CHUNK", 3)
    monkeypatch.setattr(engines, "_MAX_SCORES_IN_MEMORY", 40)  # two queries
    chunked = rank(protocol, embeddings)
    np.testing.assert_array_equal(chunked.neighbours, whole.neighbours)
    np.testing.assert_array_equal(chunked.precision, whole.precision)
    np.testing.assert_array_equal(chunked.first, whole.first)
    scores = embeddings[protocol.queries] @ embeddings[protocol.gallery].T
    expected = -np.sort(-scores, axis=1)
    np.testing.assert_allclose(chunked.scores, expected, rtol=1e-5, atol=1e-6)


def test_relevant_items_are_counted_and_the_subset_has_more_than_five(protocol):
    np.testing.assert_array_equal(protocol.relevant_counts(), [7, 7, 6, 5, 2, 6, 0])
    np.testing.assert_array_equal(protocol.published_subset(), [1, 1, 1, 0, 0, 1, 0])
