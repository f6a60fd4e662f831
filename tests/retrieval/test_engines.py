"""Exact search, ScaNN, sharded search and tuning."""

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
    neighbours = ExactEngine(gallery).search(gallery, 1)
    np.testing.assert_array_equal(neighbours.rows[:, 0], np.arange(50))
    np.testing.assert_allclose(neighbours.scores, 1, atol=1e-6)
    same = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(ExactEngine(same).search(same[:1], 9).rows, [[0, 1, 2, 3]])


def test_ties_at_the_last_place_go_to_the_lower_rows():
    gallery = np.ones((1000, 1), np.float32)
    gallery[:3] = 0.5
    neighbours = ExactEngine(gallery).search(np.ones((1, 1), np.float32), 5)
    np.testing.assert_array_equal(neighbours.rows, [[3, 4, 5, 6, 7]])


def test_exact_search_in_chunks_equals_a_full_sort(monkeypatch):
    monkeypatch.setattr(engines, "_MAX_SCORES_IN_MEMORY", 150)  # 3 queries at once
    gallery, queries = unit_vectors(50, 0), unit_vectors(10, 1)
    neighbours = ExactEngine(gallery).search(queries, 7)
    expected = np.argsort(-(queries @ gallery.T), axis=1)[:, :7]
    np.testing.assert_array_equal(neighbours.rows, expected)


@pytest.mark.parametrize(
    "size, exact_below, tree_from, description",
    [
        (300, 20_000, 100_000, "brute force"),
        (2000, 1000, 100_000, "asymmetric hashing"),
        (2000, 500, 1000, "tree"),
    ],
)
def test_scann_is_configured_by_size_and_finds_neighbours(
    monkeypatch, tmp_path, size, exact_below, tree_from, description
):
    monkeypatch.setattr(engines, "EXACT_BELOW", exact_below)
    monkeypatch.setattr(engines, "TREE_FROM", tree_from)
    # A tree needs clusters, as embeddings have them; its partition differs between runs.
    draw = clustered if description == "tree" else unit_vectors
    gallery, queries = draw(size, 0), draw(64, 1)
    scann = ScannEngine.build(gallery, 10)
    assert description in scann.description
    neighbours = scann.search(queries, 10)
    expected = ExactEngine(gallery).search(queries, 10)
    assert recall(neighbours.rows, expected.rows) >= (0.8 if description == "tree" else 0.95)
    scann.save(tmp_path)
    again = ScannEngine.load(tmp_path, size, 10, scann.settings).search(queries, 10)
    np.testing.assert_array_equal(again.rows, neighbours.rows)


def test_scann_returns_all_rows_of_a_gallery_smaller_than_k():
    gallery = unit_vectors(7, 0)
    neighbours = ScannEngine.build(gallery, 20).search(gallery, 20)
    np.testing.assert_array_equal(np.sort(neighbours.rows, axis=1), np.tile(np.arange(7), (7, 1)))


@pytest.mark.parametrize("target", [0.9, 1.0])
def test_tuning_reaches_its_target(monkeypatch, target):
    monkeypatch.setattr(engines, "EXACT_BELOW", 500)
    monkeypatch.setattr(engines, "TREE_FROM", 1000)
    # With 1,000 queries a half, recalls of the halves differ by chance by 0.01; with 100, by 0.03.
    # Which settings are the fastest depends on the machine's load, so chance draws anew each time.
    gallery, queries = clustered(2000, 0), clustered(2000, 1)
    tuned = tune(gallery, queries, 10, target)
    expected = ExactEngine(gallery).search(queries[::2], 10)
    assert recall(tuned.engine.search(queries[::2], 10).rows, expected.rows) >= target
    assert tuned.queries == 1000 and tuned.recall >= target - 0.05


def test_tuning_falls_back_to_exact_search(monkeypatch):
    monkeypatch.setattr(engines, "EXACT_BELOW", 500)
    monkeypatch.setattr("capret_jax.retrieval.tuning._REORDERS", (1,))
    tuned = tune(unit_vectors(1000, 0), unit_vectors(40, 1), 10, 1.0)
    assert tuned.engine.description == "exact" and tuned.recall == 1.0


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 2, 1)])
def test_sharded_search_equals_exact_search(shape):
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: np.prod(shape)])
    gallery, queries = unit_vectors(101, 0), unit_vectors(300, 1)
    expected = ExactEngine(gallery).search(queries, 30)
    neighbours = ShardedEngine(gallery, mesh).search(queries, 30)
    np.testing.assert_array_equal(neighbours.rows, expected.rows)
    np.testing.assert_allclose(neighbours.scores, expected.scores, atol=1e-6)
    approximate = ShardedEngine(gallery, mesh, recall_target=0.95).search(queries, 5)
    assert recall(approximate.rows, expected.rows[:, :5]) >= 0.95
