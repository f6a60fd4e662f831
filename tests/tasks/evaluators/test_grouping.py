"""Groups of texts of one picture, and numbers of pairs."""

import numpy as np

from capret_jax.tasks.evaluators.grouping import PictureGroups, group_rows
from capret_jax.tasks.evaluators.matching import pair_keys


def test_a_group_has_one_owner_and_each_row_is_in_one():
    owner = np.sort(np.random.default_rng(0).integers(0, 20, 200))
    groups = group_rows(owner, 7)
    assert (owner[groups] == owner[groups[:, :1]]).all()
    real = [row for group in groups for row in np.unique(group)]
    assert real == list(range(200))
    # No more groups than needed.
    assert len(groups) == sum(-(-count // 7) for count in np.bincount(owner))


def test_values_come_back_by_text():
    pictures = ["b", "a", "b", "c", "b", "a", "b"]
    groups = PictureGroups(pictures, 3)
    assert [[pictures[row] for row in rows] for rows in groups.rows] == [
        [path] * 3 for path in groups.paths
    ]
    assert sorted(groups.paths) == ["a", "b", "b", "c"]
    values = groups.rows[..., None] * np.array([1, 10])
    np.testing.assert_array_equal(groups.by_text(values), np.arange(7)[:, None] * [1, 10])


def test_a_pair_has_one_number_in_both_directions():
    by_image, by_text = pair_keys(
        (np.array([[2, 0], [1, 2]]), np.array([[0], [1], [1]])), captions=3
    )
    np.testing.assert_array_equal(by_image, [[2, 0], [4, 5]])
    np.testing.assert_array_equal(by_text, [[0], [4], [5]])
