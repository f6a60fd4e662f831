"""Calibration of the score threshold of detections, and the file that stores it."""

import contextlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from capret_jax.data.json_values import as_number
from capret_jax.detection.boxes import box_iou
from capret_jax.detection.detector import Detection
from capret_jax.errors import MALFORMED_JSON, InputError

_FILE = "detection.json"
# IoU from which a detection of the right category is correct, as in AP50.
_CORRECT_IOU = 0.5


class ThresholdCalibration(NamedTuple):
    """A score threshold, and the precision and recall of the detections that reach it.

    Attributes:
        threshold: the lowest score that counts.
        precision: fraction of the counted detections that are correct.
        recall: fraction of the ground-truth items that have a correct detection.
    """

    threshold: float
    precision: float
    recall: float


class ScoredDetections(NamedTuple):
    """All detections in a set of photographs, matched with the ground truth.

    Attributes:
        scores: (n,) float64 scores.
        correct: (n,) bool, True where a detection matches a ground-truth item.
        num_items: the number of ground-truth items.
    """

    scores: np.ndarray
    correct: np.ndarray
    num_items: int


def match_detections(
    detections: Sequence[Sequence[Detection]],
    boxes: Sequence[np.ndarray],
    categories: Sequence[np.ndarray],
) -> ScoredDetections:
    """Matches detections greedily with ground-truth items of the same category at IoU >= 0.5.

    Each item is matched at most once, by the first detection that overlaps it enough.

    Args:
        detections: the detections of each photograph, highest score first.
        boxes: the (m, 4) ground-truth boxes of each photograph, x1, y1, x2, y2 in pixels.
        categories: the (m,) int ground-truth category ids of each photograph.

    Returns:
        All n detections, in the order of the photographs.
    """
    scores, correct = [], []
    for in_image, item_boxes, item_categories in zip(detections, boxes, categories, strict=True):
        unmatched = np.ones(len(item_boxes), bool)
        for detection in in_image:
            overlap = box_iou(detection.box[None], item_boxes)[0]
            candidates = unmatched & (item_categories == detection.category_id)
            overlap = np.where(candidates, overlap, 0)
            matches = bool(len(overlap)) and overlap.max() >= _CORRECT_IOU
            if matches:
                unmatched[overlap.argmax()] = False
            scores.append(detection.score)
            correct.append(matches)
    return ScoredDetections(np.array(scores), np.array(correct, bool), sum(map(len, boxes)))


def calibrate_threshold(detections: ScoredDetections) -> ThresholdCalibration:
    """Returns the threshold with the best F1, or 1.0 if no detection is correct."""
    if not detections.correct.any():
        return ThresholdCalibration(1.0, 0.0, 0.0)
    order = np.argsort(-detections.scores, kind="stable")
    true_positives = np.cumsum(detections.correct[order])
    counted = np.arange(1, len(order) + 1)
    f1 = 2 * true_positives / (counted + detections.num_items)
    # No threshold separates two equal scores.
    scores = detections.scores[order]
    f1[:-1][scores[:-1] == scores[1:]] = -1
    return at_threshold(detections, float(scores[f1.argmax()]))


def at_threshold(detections: ScoredDetections, threshold: float) -> ThresholdCalibration:
    """Computes precision and recall of the detections whose score reaches a threshold."""
    counted = detections.correct[detections.scores >= threshold]
    return ThresholdCalibration(
        threshold,
        float(counted.mean()) if len(counted) else 0.0,
        float(counted.sum() / max(1, detections.num_items)),
    )


def write_thresholds(
    workdir: pathlib.Path,
    step: int,
    calibrations: Mapping[str, ThresholdCalibration],
    settings: Mapping[str, dict[str, Any]],
) -> None:
    """Writes `detection.json` into a model's folder; other kinds stay if they are of this step.

    Args:
        workdir: the folder.
        step: step of the model that was calibrated.
        calibrations: thresholds by kind of detector.
        settings: settings that the scores depend on by kind, from `detectors.score_settings`.
    """
    detectors = {
        kind: {**calibration._asdict(), "settings": settings[kind]}
        for kind, calibration in calibrations.items()
    }
    path = workdir / _FILE
    # A file that cannot be read is replaced, as its error message says.
    with contextlib.suppress(FileNotFoundError, InputError):
        calibrated, before = _read(path)
        detectors = before | detectors if calibrated == step else detectors
    content = {"step": step, "detectors": detectors}
    path.write_text(json.dumps(content, indent=2) + "\n")


def read_threshold(
    folder: pathlib.Path,
    step: int | None,
    kind: str,
    settings: dict[str, Any],
    default: float,
) -> float:
    """Returns the threshold of a detector in a model's `detection.json`.

    Args:
        folder: folder of the model.
        step: step of the model.
        kind: kind of detector.
        settings: settings that its scores depend on, from `detectors.score_settings`.
        default: threshold where the file is absent, or, with a warning, of another step, without
            this kind, or of other settings.

    Raises:
        InputError: the file holds no threshold.
    """
    path = folder / _FILE
    if not path.is_file():
        return default
    calibrated, detectors = _read(path)
    if calibrated != step:
        print(
            f"{path} is of step {calibrated}, and the model of step {step}: the threshold is "
            f"{default} until the model is evaluated",
            file=sys.stderr,
        )
        return default
    if kind not in detectors:
        print(
            f"{path} has no threshold of detection.kind={kind!r}: it is {default} until the model "
            "is evaluated with it",
            file=sys.stderr,
        )
        return default
    # Earlier versions did not keep them.
    before = detectors[kind].get("settings", settings)
    if before != settings:
        print(
            f"{path} was calibrated with {before}, and detection has {settings}: the threshold is "
            f"{default} until the model is evaluated with these",
            file=sys.stderr,
        )
        return default
    return detectors[kind]["threshold"]


def _read(path: pathlib.Path) -> tuple[int | None, dict[str, dict[str, Any]]]:
    """Returns the step of the file, and threshold and settings by kind of detector."""
    try:
        content = json.loads(path.read_bytes())
        # Earlier versions detected by phrases alone.
        detectors = content.get("detectors", {"phrases": content})
        for value in detectors.values():
            as_number(value["threshold"])
        return content.get("step"), detectors
    except MALFORMED_JSON as error:
        raise InputError(
            f"{path} holds no threshold ({type(error).__name__}: {error}): evaluate the model "
            "again, or remove the file."
        ) from error
