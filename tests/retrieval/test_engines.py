"""Exact search, ScaNN and the sharded search on the same vectors."""

import jax
import numpy as np
import pytest

from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.retrieval import engines
from capret_jax.retrieval.engines import ExactEngine, ScannEngine
from capret_jax.retrieval.metrics import recall
from capret_jax.retrieval.sharded import ShardedEngine
from capret_jax.retrieval.tuning import tune
from tests.retrieval.vectors import clustered, unit_vectors


def test_exact_search_finds_the_query_itself_and_breaks_ties_by_row():
    gallery = unit_vectors(50, 0)
    found = ExactEngine(gallery).search(gallery, 1)
    np.testing.assert_array_equal(found.rows[:, 0], np.arange(50))
    np.testing.assert_allclose(found.scores, 1, atol=1e-6)
    same = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(ExactEngine(same).search(same[:1], 9).rows, [[0, 1, 2, 3]])


def test_ties_at_the_last_place_go_to_the_lower_rows():
    gallery = np.ones((1000, 1), np.float32)
    gallery[:3] = 0.5
    found = ExactEngine(gallery).search(np.ones((1, 1), np.float32), 5)
    np.testing.assert_array_equal(found.rows, [[3, 4, 5, 6, 7]])


def test_exact_search_in_chunks_is_a_sort(monkeypatch):
    monkeypatch.setattr(engines, "_SCORES_AT_ONCE", 150)  # 3 queries at once
    gallery, queries = unit_vectors(50, 0), unit_vectors(10, 1)
    found = ExactEngine(gallery).search(queries, 7)
    expected = np.argsort(-(queries @ gallery.T), axis=1)[:, :7]
    np.testing.assert_array_equal(found.rows, expected)


@pytest.mark.parametrize(
    "size, exact_below, tree_from, kind",
    [
        (300, 20_000, 100_000, "brute force"),
        (2000, 1000, 100_000, "asymmetric hashing"),
        (2000, 500, 1000, "tree"),
    ],
)
def test_scann_is_configured_by_size_and_finds_neighbours(
    monkeypatch, tmp_path, size, exact_below, tree_from, kind
):
    monkeypatch.setattr(engines, "EXACT_BELOW", exact_below)
    monkeypatch.setattr(engines, "TREE_FROM", tree_from)
    gallery, queries = unit_vectors(size, 0), unit_vectors(64, 1)
    scann = ScannEngine.build(gallery, 10)
    assert kind in scann.kind
    found = scann.search(queries, 10)
    # Random vectors have no clusters, which is the worst case for a tree.
    truth = ExactEngine(gallery).search(queries, 10)
    assert recall(found.rows, truth.rows) >= (0.4 if kind == "tree" else 0.95)
    scann.save(tmp_path)
    again = ScannEngine.load(tmp_path, size, 10, scann.settings).search(queries, 10)
    np.testing.assert_array_equal(again.rows, found.rows)


def test_scann_gives_all_there_is_of_a_small_gallery():
    gallery = unit_vectors(7, 0)
    found = ScannEngine.build(gallery, 20).search(gallery, 20)
    np.testing.assert_array_equal(np.sort(found.rows, axis=1), np.tile(np.arange(7), (7, 1)))


@pytest.mark.parametrize("target", [0.9, 1.0])
def test_tuning_reaches_its_target_or_is_exact(monkeypatch, target):
    monkeypatch.setattr(engines, "EXACT_BELOW", 500)
    monkeypatch.setattr(engines, "TREE_FROM", 1000)
    gallery, queries = clustered(2000, 0), clustered(200, 1)
    tuned = tune(gallery, queries, 10, target)
    truth = ExactEngine(gallery).search(queries[::2], 10)
    assert recall(tuned.engine.search(queries[::2], 10).rows, truth.rows) >= target
    assert tuned.queries == 100 and tuned.recall >= target - 0.05


def test_what_cannot_be_reached_is_searched_exactly(monkeypatch):
    monkeypatch.setattr(engines, "EXACT_BELOW", 500)
    monkeypatch.setattr("capret_jax.retrieval.tuning._REORDERS", (1,))
    tuned = tune(unit_vectors(1000, 0), unit_vectors(40, 1), 10, 1.0)
    assert tuned.engine.kind == "exact" and tuned.recall == 1.0


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 2, 1)])
def test_the_sharded_search_is_the_exact_one(shape):
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: np.prod(shape)])
    gallery, queries = unit_vectors(101, 0), unit_vectors(300, 1)
    truth = ExactEngine(gallery).search(queries, 30)
    found = ShardedEngine(gallery, mesh).search(queries, 30)
    np.testing.assert_array_equal(found.rows, truth.rows)
    np.testing.assert_allclose(found.scores, truth.scores, atol=1e-6)
    approximate = ShardedEngine(gallery, mesh, recall_target=0.95).search(queries, 5)
    assert recall(approximate.rows, truth.rows[:, :5]) >= 0.95
