"""Suppression across categories, on a case with a known result."""

import numpy as np

from capret_jax.detection.detector import Detection, suppress_across_categories

LEFT, RIGHT = np.array([0, 0, 10, 20.0]), np.array([20, 0, 30, 20.0])


def test_one_detection_per_garment_is_kept_from_the_threshold_on():
    trousers, shorts, top = (
        Detection(8, LEFT, 0.9),
        Detection(7, LEFT, 0.8),  # the same garment with another category
        Detection(1, RIGHT, 0.4),
    )
    detections = [trousers, shorts, top]
    assert suppress_across_categories(detections, 0.0, 0.6) == [trousers, top]
    assert suppress_across_categories(detections, 0.4, 0.6) == [trousers, top]
    assert suppress_across_categories(detections, 0.5, 0.6) == [trousers]
    assert suppress_across_categories(detections, 0.95, 0.6) == []
    assert suppress_across_categories([], 0.0, 0.6) == []
