"""Detections judged and a threshold chosen, by hand."""

import numpy as np

from capret_jax.detection.phrases import Detection
from capret_jax.detection.threshold import (
    ScoredDetections,
    at_threshold,
    calibrate_threshold,
    match_detections,
    read_threshold,
    write_threshold,
)

LEFT, RIGHT = np.array([0, 0, 10, 20.0]), np.array([20, 0, 30, 20.0])


def test_each_garment_makes_one_detection_of_its_category_right():
    found = [
        [
            Detection(1, LEFT, 0.9),
            Detection(1, LEFT + 1, 0.8),  # a second one of the same garment
            Detection(8, LEFT, 0.7),  # another category
            Detection(8, RIGHT + [0, 0, 0, 30], 0.6),  # IoU 0.4
        ],
        [],
        [Detection(2, RIGHT, 0.5)],
    ]
    boxes = [np.stack([LEFT, RIGHT]), LEFT[None], RIGHT[None]]
    judged = match_detections(found, boxes, [np.array([1, 8]), np.array([3]), np.array([2])])
    np.testing.assert_array_equal(judged.right, [True, False, False, False, True])
    np.testing.assert_array_equal(judged.scores, [0.9, 0.8, 0.7, 0.6, 0.5])
    assert judged.items == 4


def test_the_threshold_has_the_best_f1():
    # F1 = 2 hits / (taken + items): 2/4, 2/5, 4/6 at 0.7, 4/7, 4/8.
    judged = ScoredDetections(
        np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 0, 1, 0, 0], bool), 3
    )
    calibration = calibrate_threshold(judged)
    np.testing.assert_allclose(calibration, [0.7, 2 / 3, 2 / 3])
    assert at_threshold(judged, 0.95) == (0.95, 0.0, 0.0)


def test_equal_scores_are_not_cut_apart():
    judged = ScoredDetections(np.array([0.9, 0.9, 0.9, 0.1]), np.array([1, 0, 0, 1], bool), 2)
    # 0.9 takes three: F1 2/5; 0.1 takes all: 4/6.
    assert calibrate_threshold(judged).threshold == 0.1


def test_without_a_right_detection_nothing_counts():
    assert (
        calibrate_threshold(ScoredDetections(np.array([0.9]), np.array([False]), 1)).threshold
        == 1.0
    )


def test_the_threshold_is_kept_beside_the_model(tmp_path):
    assert read_threshold(tmp_path, 0.5) == 0.5
    write_threshold(
        tmp_path, calibrate_threshold(ScoredDetections(np.array([0.25]), np.array([True]), 1))
    )
    assert read_threshold(tmp_path, 0.5) == 0.25
