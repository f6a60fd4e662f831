"""Boxes from windows and back, and suppression, worked out by hand."""

import numpy as np

from capret_jax.detection.boxes import from_window, suppress


def test_a_box_in_a_window_is_placed_in_the_photograph():
    window = np.array([10, 20, 50, 100])
    boxes = np.array([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.25], [0.0, 0.0, 0.5, 0.5]])
    expected = [[10, 20, 50, 100], [10, 50, 30, 70], [10, 20, 20, 40]]
    np.testing.assert_allclose(from_window(boxes, window), expected)


def test_a_box_keeps_a_pixel_inside_its_window():
    found = from_window(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 8, 8]))
    np.testing.assert_allclose(found, [7, 7, 8, 8])


def test_of_boxes_that_overlap_the_most_certain_stays():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [0, 0, 10, 4]], float)
    # IoU 0.9 with the second, 0.4 with the last.
    assert suppress(boxes, np.array([0.5, 0.9, 0.1, 0.3]), 0.6) == [1, 3, 2]
    assert suppress(boxes, np.array([0.5, 0.9, 0.1, 0.3]), 0.4) == [1, 2]
    assert suppress(np.empty((0, 4)), np.empty(0), 0.5) == []
