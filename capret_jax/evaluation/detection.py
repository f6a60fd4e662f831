"""Detection evaluators: average precision of garments found, and retrieval with detected boxes."""

from typing import Any

import jax
import numpy as np

from capret_jax.data.pipeline import Split
from capret_jax.detection.average_precision import average_precision, coco_entries
from capret_jax.detection.detector import Detection, Detector, suppress_across_categories
from capret_jax.detection.threshold import (
    ScoredDetections,
    ThresholdCalibration,
    at_threshold,
    calibrate_threshold,
    match_detections,
    write_threshold,
)
from capret_jax.distributed.gather import gather_rows
from capret_jax.distributed.part import Part
from capret_jax.evaluation.context import EvaluationContext
from capret_jax.evaluation.detected_boxes import rank_detections
from capret_jax.evaluation.retrieval import official_metrics, tables
from capret_jax.train.state import TrainState

# Photographs of the training split that the threshold is calibrated on.
_CALIBRATION_PHOTOGRAPHS = 400
# Photographs that are decoded at once.
_CHUNK = 32


class DetectionEvaluator:
    """Average precision by COCO's definition, and precision and recall at a calibrated threshold.

    The threshold is calibrated on photographs of the training split, and left in the workdir for
    serving.
    """

    def __init__(self, context: EvaluationContext):
        self._context = context

    def run(self, state: TrainState) -> dict[str, Any]:
        """Detects garments in all validation photographs.

        Returns:
            "detection": "AP", "AP50", "AP75" of all detections; "threshold", and "precision" and
            "recall" of one detection for each garment from it on; "photographs", and "seconds".
        """
        run, detected = self._context.run, self._context.readings(state).detected
        assert detected is not None, "the config has an evaluator that nothing is detected for"
        overlap = run.config.evaluation.detection.overlap
        detector = self._context.detector(state)
        calibration = _calibrate(detector, run.dataset.train, run.part, overlap)
        validation = run.dataset.validation
        images = validation.items["image_id"][detected.rows]
        entries = coco_entries(images, detected.by_photograph)
        counted = _suppress(detected.by_photograph, calibration.threshold, overlap)
        matched = _match(validation, detected.rows, counted)
        if jax.process_index() == 0:
            write_threshold(run.workdir, calibration)
        metrics = {
            **average_precision(entries, validation.items),
            **at_threshold(matched, calibration.threshold)._asdict(),
            "photographs": len(detected.rows),
            "seconds": detected.seconds,
        }
        return {"detection": metrics}


class DetectedBoxEvaluator:
    """The retrieval protocol with detected boxes in place of the ground truth's, on both sides."""

    def __init__(self, context: EvaluationContext):
        self._context = context

    def run(self, state: TrainState) -> dict[str, Any]:
        """Searches with the boxes detected in consumers' photographs among those in shop pictures.

        Returns:
            "detected": the same metrics as the ground truth's boxes have, "detections" and
            "skipped_detections"; empty where a side has no detection. The official result file is
            left in the context.
        """
        context, detected = self._context, self._context.readings(state).detected
        assert detected is not None, "the config has an evaluator that nothing is detected for"
        boxes, protocol = detected.boxes, context.protocol
        if len(np.unique(boxes.items.is_shop)) < 2:
            return {}
        ranked = rank_detections(boxes, detected.embeddings, protocol)
        context.files["deepfashion2_retrieval_detected.json"] = ranked.results
        items = context.run.dataset.validation.items
        metrics = {
            **tables(items, protocol, ranked.precision, ranked.first),
            "detections": len(boxes.items),
            "skipped_detections": boxes.skipped,
            "official": official_metrics(protocol, ranked.results),
        }
        return {"detected": metrics}


def _calibrate(
    detector: Detector, split: Split, part: Part, overlap: float
) -> ThresholdCalibration:
    """Finds the threshold with the best F1 on some photographs; processes share the work."""
    _, rows = np.unique(split.items.record, return_index=True)
    if len(rows) > _CALIBRATION_PHOTOGRAPHS:
        rows = rows[np.linspace(0, len(rows) - 1, _CALIBRATION_PHOTOGRAPHS).astype(int)]
    own = np.array_split(rows, part.count)[part.index]
    found: list[list[Detection]] = []
    for start in range(0, len(own), _CHUNK):  # or all of them would be in memory
        found += detector([split.photograph(int(row)) for row in own[start : start + _CHUNK]])
    matched = _match(split, own, _suppress(found, 0.0, overlap))
    return calibrate_threshold(
        ScoredDetections(
            gather_rows(matched.scores.astype(np.float64)),
            gather_rows(matched.correct),
            int(gather_rows(np.array([matched.num_items])).sum()),
        )
    )


def _suppress(
    found: list[list[Detection]], threshold: float, overlap: float
) -> list[list[Detection]]:
    return [suppress_across_categories(each, threshold, overlap) for each in found]


def _match(split: Split, rows: np.ndarray, found: list[list[Detection]]) -> ScoredDetections:
    """Compares detections with the items of the photographs of some rows."""
    items = split.items
    same = [np.flatnonzero(items.record == items.record[row]) for row in rows]
    boxes = [items.box[each].astype(np.float64) for each in same]
    return match_detections(found, boxes, [items["category_id"][each] for each in same])
