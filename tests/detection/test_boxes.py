"""Window coordinates and non-maximum suppression, on cases with a known result."""

import numpy as np

from capret_jax.detection.boxes import box_iou, from_window, non_max_suppression


def test_boxes_in_a_window_are_converted_to_pixels_of_the_photograph():
    window = np.array([10, 20, 50, 100])
    boxes = np.array([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.25], [0.0, 0.0, 0.5, 0.5]])
    expected = [[10, 20, 50, 100], [10, 50, 30, 70], [10, 20, 20, 40]]
    np.testing.assert_allclose(from_window(boxes, window), expected)


def test_empty_boxes_become_one_pixel_inside_their_window():
    boxes = from_window(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 8, 8]))
    np.testing.assert_allclose(boxes, [7, 7, 8, 8])


def test_iou_of_shifted_and_empty_boxes():
    # 10x10 boxes shifted by 5: 50 shared of 150. The IoU of an empty box with itself is 0.
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [3, 3, 3, 3]], float)
    expected = [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(box_iou(boxes, boxes), expected)


def test_suppression_keeps_the_highest_score_of_overlapping_boxes():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [0, 0, 10, 4]], float)
    scores = np.array([0.5, 0.9, 0.1, 0.3])
    # The first box has IoU 0.9 with the second and 0.4 with the last.
    assert non_max_suppression(boxes, scores, 0.6) == [1, 3, 2]
    assert non_max_suppression(boxes, scores, 0.4) == [1, 2]
    assert non_max_suppression(np.empty((0, 4)), np.empty(0), 0.5) == []
