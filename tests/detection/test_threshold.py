"""Matching of detections and calibration of the threshold, on cases with a known result."""

import dataclasses

import numpy as np
import pytest

from capret_jax.config import DetectionConfig
from capret_jax.detection.detector import Detection
from capret_jax.detection.detectors import score_settings
from capret_jax.detection.threshold import (
    ScoredDetections,
    at_threshold,
    calibrate_threshold,
    match_detections,
    read_threshold,
    write_thresholds,
)
from capret_jax.errors import InputError

LEFT, RIGHT = np.array([0, 0, 10, 20.0]), np.array([20, 0, 30, 20.0])


def scored(scores, correct, num_items):
    return ScoredDetections(np.array(scores), np.array(correct, bool), num_items)


CALIBRATED = {"phrases": calibrate_threshold(scored([0.25], [True], 1))}


def test_each_item_matches_one_detection_of_its_category():
    detections = [
        [
            Detection(1, LEFT, 0.9),
            Detection(1, LEFT + 1, 0.8),  # a second detection of the same item
            Detection(8, LEFT, 0.7),  # another category
            Detection(8, RIGHT + [0, 0, 0, 30], 0.6),  # IoU 0.4
        ],
        [],
        [Detection(2, RIGHT, 0.5)],
    ]
    boxes = [np.stack([LEFT, RIGHT]), LEFT[None], RIGHT[None]]
    categories = [np.array([1, 8]), np.array([3]), np.array([2])]
    matched = match_detections(detections, boxes, categories)
    np.testing.assert_array_equal(matched.correct, [True, False, False, False, True])
    np.testing.assert_array_equal(matched.scores, [0.9, 0.8, 0.7, 0.6, 0.5])
    assert matched.num_items == 4


def test_the_calibrated_threshold_has_the_best_f1():
    # F1 = 2 true positives / (counted + items): 2/4, 2/5, 4/6 at 0.7, 4/7, 4/8.
    detections = scored([0.9, 0.8, 0.7, 0.6, 0.5], [1, 0, 1, 0, 0], 3)
    np.testing.assert_allclose(calibrate_threshold(detections), [0.7, 2 / 3, 2 / 3])
    assert at_threshold(detections, 0.95) == (0.95, 0.0, 0.0)


def test_detections_of_equal_score_are_counted_together():
    # 0.9 counts three: F1 2/5; 0.1 counts all: 4/6.
    detections = scored([0.9, 0.9, 0.9, 0.1], [1, 0, 0, 1], 2)
    assert calibrate_threshold(detections).threshold == 0.1


def test_the_threshold_is_1_without_a_correct_detection():
    assert calibrate_threshold(scored([0.9], [False], 1)) == (1.0, 0.0, 0.0)


def test_the_threshold_is_written_into_and_read_from_the_models_folder(tmp_path):
    assert read_threshold(tmp_path, 3, "phrases", {}, 0.5) == 0.5
    scores = {"phrases": 0.25, "locations": 0.75}
    calibrated = {k: calibrate_threshold(scored([v], [True], 1)) for k, v in scores.items()}
    write_thresholds(tmp_path, 3, calibrated, dict.fromkeys(scores, {}))
    for kind, score in scores.items():
        assert read_threshold(tmp_path, 3, kind, {}, 0.5) == score


def test_a_detector_that_was_not_calibrated_has_the_default(tmp_path, capsys):
    write_thresholds(tmp_path, 3, CALIBRATED, {"phrases": {}})
    assert read_threshold(tmp_path, 3, "locations", {}, 0.5) == 0.5
    assert "has no threshold of detection.kind='locations'" in capsys.readouterr().err


def test_a_threshold_belongs_to_the_settings_that_shape_scores(tmp_path, capsys):
    config = DetectionConfig()
    settings = {"phrases": score_settings("phrases", config)}
    write_thresholds(tmp_path, 3, CALIBRATED, settings)
    for changes, expected in (({"samples": 1, "batch_size": 1}, 0.25), ({"refinements": 1}, 0.5)):
        changed = score_settings("phrases", dataclasses.replace(config, **changes))
        assert read_threshold(tmp_path, 3, "phrases", changed, 0.5) == expected
    assert "was calibrated with" in capsys.readouterr().err
    assert set(score_settings("locations", config)) == {"overlap", "samples", "top_p"}
    assert set(score_settings("both", config)) == {
        *("candidates", "margin", "overlap", "samples", "top_p")
    }


def test_thresholds_of_other_kinds_stay_while_they_are_of_the_same_model(tmp_path):
    for step, expected in ((3, 0.25), (4, 0.5)):
        write_thresholds(tmp_path, 3, CALIBRATED, {"phrases": {}})
        write_thresholds(tmp_path, step, {"locations": CALIBRATED["phrases"]}, {"locations": {}})
        assert read_threshold(tmp_path, step, "locations", {}, 0.5) == 0.25
        assert read_threshold(tmp_path, step, "phrases", {}, 0.5) == expected
    (tmp_path / "detection.json").write_text("{")
    write_thresholds(tmp_path, 3, CALIBRATED, {"phrases": {}})
    assert read_threshold(tmp_path, 3, "phrases", {}, 0.5) == 0.25


def test_the_threshold_of_earlier_versions_is_that_of_phrases(tmp_path):
    (tmp_path / "detection.json").write_text('{"step": 3, "threshold": 0.25}')
    assert read_threshold(tmp_path, 3, "phrases", {}, 0.5) == 0.25


def test_the_threshold_of_another_step_is_not_used(tmp_path, capsys):
    write_thresholds(tmp_path, 3, CALIBRATED, {"phrases": {}})
    assert read_threshold(tmp_path, 4, "phrases", {}, 0.5) == 0.5
    assert "is of step 3, and the model of step 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", "[" * 10**5, "\xff"),
        *('{"threshold": null}', '{"threshold": NaN}'),
        *('{"detectors": [1]}', '{"detectors": {"phrases": 1}}'),
    ],
)
def test_a_file_without_a_threshold_is_refused(tmp_path, content):
    (tmp_path / "detection.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"detection\.json holds no threshold .*evaluate"):
        read_threshold(tmp_path, 3, "phrases", {}, 0.5)
