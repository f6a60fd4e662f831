"""Recall in both directions: ties, items that are no candidates, and full score matrices."""

import numpy as np
import pytest

from capret_jax.tasks.scorers.recall import UNRANKED, retrieval_metrics, worst_ranks


@pytest.mark.parametrize(
    ("scores", "relevant", "rank"),
    [
        ([0.9, 0.5, 0.1], [0, 1, 0], 1),
        # Wrong items of the same score come first; other own captions do not count.
        ([0.5, 0.5, 0.5, 0.1], [1, 0, 0, 0], 2),
        ([0.5, 0.5, 0.5], [1, 1, 0], 1),
        ([0.2, 0.9, 0.5], [1, 1, 0], 0),
        # No relevant candidate: last of 10.
        ([0.9, 0.5], [0, 0], 10),
        # NaN is never an advantage.
        ([np.nan, np.nan, np.nan], [1, 0, 0], 9),
        ([0.5, np.nan, 0.1], [1, 0, 0], 1),
        ([0.5, np.nan, 0.1], [0, 1, 1], 1),
        # Below the score of the items that are not re-ranked: all 8 of them come first.
        ([-101.0, -200.0], [1, 0], 8),
        ([UNRANKED, -200.0], [1, 0], 8),
    ],
)
def test_the_rank_of_the_best_own_item(scores, relevant, rank):
    found = worst_ranks(np.array([scores]), np.array([relevant], bool), 10, UNRANKED)
    np.testing.assert_array_equal(found, [rank])


def test_candidates_give_the_ranks_of_the_whole_matrix():
    rng = np.random.default_rng(0)
    # Few values, so that there are many ties.
    scores = rng.integers(0, 30, (50, 200)).astype(np.float32)
    owner = rng.integers(0, 50, 200)
    relevant = owner == np.arange(50)[:, None]
    expected = [
        sum(s >= row[own].max() for s in row[~own]) if own.any() else 200
        for row, own in zip(scores, relevant, strict=True)
    ]
    np.testing.assert_array_equal(worst_ranks(scores, relevant, 200, -np.inf), expected)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :40]
    top, own = (np.take_along_axis(x, order, axis=1) for x in (scores, relevant))
    ranks = worst_ranks(top, own, 200, top[:, -1])
    near = np.array(expected) < 30
    assert near.sum() > 10
    np.testing.assert_array_equal(ranks[near], np.array(expected)[near])
    assert (ranks >= expected).all()


def test_one_score_for_all_pairs_is_no_success():
    relevant = np.eye(20, dtype=bool)
    ranks = worst_ranks(np.ones((20, 20)), relevant, 20, -np.inf)
    assert retrieval_metrics(ranks, ranks)["r_mean"] == 0.0


def test_the_mean_is_of_six_recalls():
    metrics = retrieval_metrics(np.array([0, 4, 9, 20]), np.array([0, 0, 7, 7]))
    assert metrics == {
        "tr_1": 0.25,
        "tr_5": 0.5,
        "tr_10": 0.75,
        "ir_1": 0.5,
        "ir_5": 0.5,
        "ir_10": 1.0,
        "r_mean": 3.5 / 6,
    }
