"""Retrieval metrics against hand-computed values and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from capret_jax.retrieval.metrics import average_precision, first_hit, recall, summarize

# Three queries over five gallery items.
RANKED = np.array([[7, 1, 7, 2, 7], [1, 2, 3, 4, 7], [1, 2, 3, 4, 5]])
QUERIES = np.array([7, 7, 7])


def test_average_precision_equals_hand_computed_values():
    # Relevant items at ranks 1, 3, 5: (1/1 + 2/3 + 3/5) / 3; at rank 5 alone: 1/5; none: undefined.
    expected = [(1 + 2 / 3 + 3 / 5) / 3, 1 / 5, np.nan]
    np.testing.assert_allclose(average_precision(RANKED, QUERIES), expected)


def test_average_precision_equals_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, relevant = rng.normal(size=30), rng.random(30) < 0.2
        relevant[0] = True
        ranked = np.where(relevant, 1, 0)[np.argsort(-scores)][None]
        ours = average_precision(ranked, np.array([1]))[0]
        assert ours == pytest.approx(average_precision_score(relevant, scores))


def test_first_hit_is_the_gallery_size_when_there_is_none():
    np.testing.assert_array_equal(first_hit(RANKED, QUERIES), [0, 4, 5])


def test_summary_counts_queries_without_relevant_items_as_wrong():
    metrics = summarize(average_precision(RANKED, QUERIES), first_hit(RANKED, QUERIES))
    assert metrics["top_1"] == pytest.approx(1 / 3)
    assert metrics["top_5"] == pytest.approx(2 / 3)
    assert metrics["mAP"] == pytest.approx(((1 + 2 / 3 + 3 / 5) / 3 + 1 / 5) / 3)
    assert metrics["queries"] == 3


def test_recall_is_the_share_of_true_neighbours():
    retrieved, exact = np.array([[1, 2, 9], [5, 4, 6]]), np.array([[1, 2, 3], [4, 5, 6]])
    assert recall(retrieved, exact) == pytest.approx(5 / 6)
