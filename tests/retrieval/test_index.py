"""Exact search and ScaNN on the same vectors."""

import numpy as np
import pytest

from capret_jax.retrieval import index
from capret_jax.retrieval.index import ExactIndex, ScannIndex
from capret_jax.retrieval.metrics import recall


def unit_vectors(count, seed):
    vectors = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_exact_search_finds_the_query_itself_and_breaks_ties_by_row():
    gallery = unit_vectors(50, 0)
    np.testing.assert_array_equal(ExactIndex(gallery).search(gallery, 1)[:, 0], np.arange(50))
    same = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(ExactIndex(same).search(same[:1], 4), [[0, 1, 2, 3]])


@pytest.mark.parametrize(
    "size, exact_below, tree_from, kind",
    [
        (300, 20_000, 100_000, "brute force"),
        (2000, 1000, 100_000, "asymmetric hashing"),
        (2000, 500, 1000, "tree"),
    ],
)
def test_scann_is_configured_by_size_and_finds_neighbours(
    monkeypatch, size, exact_below, tree_from, kind
):
    monkeypatch.setattr(index, "_EXACT_BELOW", exact_below)
    monkeypatch.setattr(index, "_TREE_FROM", tree_from)
    gallery, queries = unit_vectors(size, 0), unit_vectors(64, 1)
    scann = ScannIndex(gallery, 10)
    assert kind in scann.kind
    found = recall(scann.search(queries, 10), ExactIndex(gallery).search(queries, 10))
    # Random vectors have no clusters, which is the worst case for a tree.
    assert found >= (0.4 if kind == "tree" else 0.95)


def test_scann_gives_all_there_is_of_a_small_gallery():
    gallery = unit_vectors(7, 0)
    found = ScannIndex(gallery, 20).search(gallery, 20)
    np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(7), (7, 1)))
