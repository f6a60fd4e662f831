"""Texts grouped by their pictures, so that a picture is encoded and sent once for many texts."""

import numpy as np


def group_rows(owner: np.ndarray, size: int) -> np.ndarray:
    """Cuts rows that are ordered by their owner into groups of one owner each.

    Args:
        owner: (P,) int, ascending, P >= 1.
        size: K, number of rows in a group.

    Returns:
        (U, K) int64 rows; the last row of a group is repeated where there are fewer.
    """
    _, first, counts = np.unique(owner, return_index=True, return_counts=True)
    groups = -(-counts // size)
    number = np.arange(groups.sum()) - np.repeat(np.cumsum(groups) - groups, groups)
    start, end = np.repeat(first, groups) + number * size, np.repeat(first + counts, groups)
    return np.minimum(start[:, None] + np.arange(size), end[:, None] - 1)


class PictureGroups:
    """Groups of K texts, each group about one picture; a picture may have several groups.

    Attributes:
        paths: path of the picture of each of the U groups.
        rows: (U, K) int64 rows of the texts; the last one of a group is repeated as padding.
    """

    def __init__(self, pictures: list[str], size: int):
        """
        Args:
            pictures: path of the picture of each of n >= 1 texts.
            size: most texts in a group.
        """
        _, owner, counts = np.unique(pictures, return_inverse=True, return_counts=True)
        order = np.argsort(owner, kind="stable")
        self.rows = order[group_rows(owner[order], min(size, int(counts.max())))]
        self.paths = [pictures[row] for row in self.rows[:, 0]]

    def by_text(self, values: np.ndarray) -> np.ndarray:
        """Returns (n, ...) values by text of (U, K, ...) values by group."""
        result = np.empty((self.rows.max() + 1, *values.shape[2:]), values.dtype)
        result[self.rows] = values
        return result
