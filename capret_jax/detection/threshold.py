"""The match probability from which a phrase counts as found, calibrated on photographs."""

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from capret_jax.detection.boxes import box_iou
from capret_jax.detection.phrases import Detection

FILE = "detection.json"
# IoU from which a detection of the right category is right, as in AP50.
_RIGHT_IOU = 0.5


class ThresholdCalibration(NamedTuple):
    """How well garments are told from what is not there.

    Attributes:
        threshold: with the best F1.
        precision, recall: at it.
    """

    threshold: float
    precision: float
    recall: float


class ScoredDetections(NamedTuple):
    """Detections in some photographs, judged.

    Attributes:
        scores: (n,) of all of them.
        right: (n,) bool.
        items: garments that are there.
    """

    scores: np.ndarray
    right: np.ndarray
    items: int


def match_detections(
    found: Sequence[Sequence[Detection]],
    boxes: Sequence[np.ndarray],
    categories: Sequence[np.ndarray],
) -> ScoredDetections:
    """Which detections are right: each garment has one, the most certain with its category.

    Args:
        found: of each photograph, the most certain first.
        boxes: of each photograph, the (m, 4) true ones.
        categories: of each photograph, the (m,) true ids.
    """
    scores, right = [], []
    for detections, truth, ids in zip(found, boxes, categories, strict=True):
        free = np.ones(len(truth), bool)
        for detection in detections:
            overlap = box_iou(detection.box[None], truth)[0]
            overlap = np.where(free & (ids == detection.category_id), overlap, 0)
            hit = bool(len(overlap)) and overlap.max() >= _RIGHT_IOU
            if hit:
                free[overlap.argmax()] = False
            scores.append(detection.score)
            right.append(hit)
    return ScoredDetections(np.array(scores), np.array(right, bool), sum(map(len, boxes)))


def calibrate_threshold(judged: ScoredDetections) -> ThresholdCalibration:
    """The threshold with the best F1; 1.0 when nothing was right."""
    if not judged.right.any():
        return ThresholdCalibration(1.0, 0.0, 0.0)
    order = np.argsort(-judged.scores, kind="stable")
    hits = np.cumsum(judged.right[order])
    taken = np.arange(1, len(order) + 1)
    f1 = 2 * hits / (taken + judged.items)
    # Between two equal scores no threshold can cut.
    scores = judged.scores[order]
    f1[:-1][scores[:-1] == scores[1:]] = -1
    return at_threshold(judged, float(scores[f1.argmax()]))


def at_threshold(judged: ScoredDetections, threshold: float) -> ThresholdCalibration:
    """Precision and recall of the detections from a threshold on."""
    counted = judged.right[judged.scores >= threshold]
    return ThresholdCalibration(
        threshold,
        float(counted.mean()) if len(counted) else 0.0,
        float(counted.sum() / max(1, judged.items)),
    )


def write_threshold(workdir: pathlib.Path, calibration: ThresholdCalibration) -> None:
    """Leaves `detection.json` beside a model."""
    (workdir / FILE).write_text(json.dumps(calibration._asdict(), indent=2) + "\n")


def read_threshold(workdir: pathlib.Path, otherwise: float) -> float:
    """What `write_threshold` left, or another value where it left nothing."""
    path = workdir / FILE
    return json.loads(path.read_text())["threshold"] if path.is_file() else otherwise
