"""Box accuracy: hand-made overlaps, and a count of pixels."""

import numpy as np
import pytest

from capret_jax.tasks.scorers.boxes import box_accuracy, inclusive_iou


def count_pixels(a, b):
    """Overlap of two boxes of whole pixels, counted on a grid."""
    grids = np.zeros((2, 60, 60), bool)
    for grid, (x, y, w, h) in zip(grids, (a, b), strict=True):
        grid[y : y + h, x : x + w] = True
    return grids.all(axis=0).sum() / grids.any(axis=0).sum()


def test_whole_pixels_are_counted():
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.integers(0, 20, (200, 2)), rng.integers(5, 40, (200, 2))], axis=1)
    a, b = boxes[:100], boxes[100:]
    expected = np.array([count_pixels(*pair) for pair in zip(a, b, strict=True)])
    # An overlap of one row or column of pixels counts as none in REFER's rule.
    first = np.maximum(a[:, :2], b[:, :2])
    last = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]) - 1
    thin = ((last == first).any(axis=1)) & (expected > 0)
    np.testing.assert_allclose(inclusive_iou(a, b), np.where(thin, 0, expected))
    assert box_accuracy(a, b) == (expected >= 0.5).mean() > 0


@pytest.mark.parametrize(
    ("predicted", "iou"),
    [
        ([0, 0, 10, 10], 1.0),
        ([5, 0, 10, 10], 1 / 3),
        ([9, 0, 10, 10], 0.0),  # one column of pixels
        ([20, 20, 5, 5], 0.0),
        ([0, 0, 10, 5], 0.5),
        ([0, 0, 0, 0], 0.0),
        ([np.nan, 0, 10, 10], 0.0),
    ],
)
def test_hand_made_overlaps(predicted, iou):
    predicted, annotated = np.array([predicted]), np.array([[0, 0, 10, 10]])
    np.testing.assert_allclose(inclusive_iou(predicted, annotated), iou)
    assert box_accuracy(predicted, annotated) == (iou >= 0.5)
