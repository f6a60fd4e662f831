"""Rankings on a mesh, against sorts of the whole gallery in NumPy."""

import jax
import numpy as np
import pytest

from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.evaluation import mesh_ranking
from capret_jax.evaluation.mesh_ranking import LabelledEmbeddings, rank_on_mesh
from capret_jax.retrieval.engines import ExactEngine
from capret_jax.retrieval.metrics import average_precision, first_hit

QUERIES, GALLERY, K = 45, 60, 7


@pytest.fixture(autouse=True)
def two_queries_per_call(monkeypatch):
    monkeypatch.setattr(mesh_ranking, "_SCORES_PER_CALL", 2 * GALLERY + 1)


@pytest.fixture(scope="module")
def embeddings():
    """Vectors of a few small integers, whose products are exact, and often equal or zero."""
    rng = np.random.default_rng(0)
    queries, gallery = (
        LabelledEmbeddings(
            rng.integers(-1, 2, (count, 4)).astype(np.float32), rng.integers(0, highest, count)
        )
        for count, highest in ((QUERIES, 6), (GALLERY, 5))  # no item has identity 5
    )
    queries.vectors[0] = -0.0
    return queries, gallery


def mesh_of(*shape):
    return make_mesh(MeshConfig(*shape), jax.devices()[: np.prod(shape)])


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_a_ranking_on_a_mesh_is_that_of_a_stable_sort(embeddings, shape):
    queries, gallery = embeddings
    ranking = rank_on_mesh(mesh_of(*shape), queries, gallery, K)
    order, scores = ExactEngine(gallery.vectors).search(queries.vectors, GALLERY)
    assert (scores[:, 1:] == scores[:, :-1]).mean() > 0.8, "ties should be common"
    np.testing.assert_array_equal(ranking.neighbours, order[:, :K])
    np.testing.assert_array_equal(ranking.scores, scores[:, :K])
    identities = gallery.identities[order]
    np.testing.assert_array_equal(ranking.first, first_hit(identities, queries.identities))
    expected = average_precision(identities, queries.identities)
    assert np.isnan(expected).any(), "some queries should have no relevant item"
    np.testing.assert_allclose(ranking.precision, expected, rtol=1e-14)


def test_relevant_items_that_the_gallery_lacks_have_precision_zero(embeddings):
    queries, gallery = embeddings
    relevant = np.arange(QUERIES) % 3 + 20
    ranking = rank_on_mesh(mesh_of(2, 1, 1), queries, gallery, 1, relevant)
    identities = gallery.identities[ExactEngine(gallery.vectors).search(queries.vectors, 99).rows]
    expected = average_precision(identities, queries.identities, relevant)
    np.testing.assert_allclose(ranking.precision, expected, rtol=1e-14)


def test_embeddings_that_are_not_a_number_come_last(embeddings):
    queries, gallery = embeddings
    vectors = gallery.vectors.copy()
    vectors[[3, 40]] = np.nan
    ranking = rank_on_mesh(
        mesh_of(2, 1, 1), queries, LabelledEmbeddings(vectors, gallery.identities), 99
    )
    np.testing.assert_array_equal(ranking.neighbours[:, -2:], [[3, 40]] * QUERIES)
    order, _ = ExactEngine(vectors).search(queries.vectors, 99)
    np.testing.assert_array_equal(ranking.neighbours, order)
