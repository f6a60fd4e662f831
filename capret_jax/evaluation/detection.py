"""Detection evaluators: average precision of detections, and retrieval with detected boxes."""

from typing import Any

import numpy as np

from capret_jax.data.split import Split
from capret_jax.detection.average_precision import average_precision, coco_entries
from capret_jax.detection.detector import Detection, Detector, suppress_across_categories
from capret_jax.detection.detectors import score_settings
from capret_jax.detection.threshold import (
    ScoredDetections,
    ThresholdCalibration,
    at_threshold,
    calibrate_threshold,
    match_detections,
    write_thresholds,
)
from capret_jax.distributed.first_process import first_process_only
from capret_jax.distributed.gather import gather_rows
from capret_jax.distributed.part import Part
from capret_jax.evaluation.context import EvaluationContext
from capret_jax.evaluation.detected_embeddings import SplitDetections
from capret_jax.evaluation.retrieval import official_metrics, tables
from capret_jax.train.state import TrainState

# Number of photographs of the training split that the threshold is calibrated on.
_CALIBRATION_PHOTOGRAPHS = 400
# Photographs that are decoded and passed to the detector in one call.
_CHUNK = 32


class DetectionEvaluator:
    """Average precision by COCO's definition, and precision and recall at a calibrated threshold.

    The thresholds are calibrated on photographs of the training split, and written to the workdir
    for serving.
    """

    def __init__(self, context: EvaluationContext):
        self._context = context

    def run(self, state: TrainState) -> dict[str, Any]:
        """Detects garments in all validation photographs, with each kind of detector.

        Returns:
            "detection": for each kind "AP", "AP50", "AP75" of all detections; "threshold", and the
            "precision" and "recall" of detections that reach it, one for each garment; "mAP" and
            "top_20" of retrieval with its boxes, where both sides have some; "photographs", their
            number, "seconds", the time of the detector, and "seconds_per_photograph".
        """
        context, run = self._context, self._context.run
        overlap = run.config.evaluation.detection.overlap
        detected = context.encoded(state).detections
        calibrations = {
            kind: _calibrate(detector, run.dataset.train, run.part, overlap)
            for kind, detector in context.detectors(state).items()
        }
        metrics = first_process_only(
            lambda: {kind: self._measure(detected[kind], calibrations[kind]) for kind in detected}
        )
        for kind in detected:  # on all processes
            metrics[kind] |= self._retrieval(state, kind)
        step = int(state.step)
        settings = {
            kind: score_settings(kind, run.config.evaluation.detection) for kind in calibrations
        }
        first_process_only(lambda: write_thresholds(run.files.folder, step, calibrations, settings))
        return {"detection": metrics}

    def _measure(
        self, detected: SplitDetections, calibration: ThresholdCalibration
    ) -> dict[str, Any]:
        """Computes the metrics of a kind of detection but those of retrieval; see `run`."""
        run = self._context.run
        overlap, validation = run.config.evaluation.detection.overlap, run.dataset.validation
        images = validation.items["image_id"][detected.rows]
        entries = coco_entries(images, detected.by_photograph)
        counted = _suppress(detected.by_photograph, calibration.threshold, overlap)
        matched = _match(validation, detected.rows, counted)
        photographs = len(detected.rows)
        return {
            **average_precision(entries, validation.items),
            **at_threshold(matched, calibration.threshold)._asdict(),
            "photographs": photographs,
            "seconds": detected.seconds,
            "seconds_per_photograph": detected.seconds / photographs,
        }

    def _retrieval(self, state: TrainState, kind: str) -> dict[str, float]:
        """Returns mAP and top-20 of retrieval with the boxes of a kind of detection."""
        boxes = self._context.encoded(state).detections[kind].boxes
        if not boxes.on_both_sides:
            return {}
        ranked = self._context.detected_ranking(state, kind)
        return {"mAP": float(ranked.precision.mean()), "top_20": float((ranked.first < 20).mean())}


class DetectedBoxEvaluator:
    """Metrics of retrieval with detected boxes instead of ground-truth boxes, on both sides."""

    def __init__(self, context: EvaluationContext):
        self._context = context

    def run(self, state: TrainState) -> dict[str, Any]:
        """Ranks the boxes detected in shop pictures for those in consumers' photographs.

        Returns:
            "detected": the metrics of `tables`, "detections" and "skipped_detections", "detector",
            the kind whose boxes they are, and "official"; without this key where a side has no
            detection. The official result file is added to the context's files.
        """
        context, kind = self._context, self._context.detection_kinds[0]
        boxes, protocol = context.encoded(state).detections[kind].boxes, context.protocol
        if not boxes.on_both_sides:
            return {}
        ranked = context.detected_ranking(state, kind)
        context.files["deepfashion2_retrieval_detected.json"] = ranked.results
        items = context.run.dataset.validation.items
        metrics = first_process_only(
            lambda: {
                "detector": kind,
                **tables(items, protocol, ranked.precision, ranked.first),
                "detections": len(boxes.items),
                "skipped_detections": boxes.skipped,
                "official": official_metrics(protocol, ranked.results),
            }
        )
        return {"detected": metrics}


def _calibrate(
    detector: Detector, split: Split, part: Part, overlap: float
) -> ThresholdCalibration:
    """Finds the threshold with the best F1 on some photographs, divided among the processes."""
    _, rows = np.unique(split.items.record, return_index=True)
    if len(rows) > _CALIBRATION_PHOTOGRAPHS:
        rows = rows[np.linspace(0, len(rows) - 1, _CALIBRATION_PHOTOGRAPHS).astype(int)]
    rows = np.array_split(rows, part.count)[part.index]
    by_photograph: list[list[Detection]] = []
    for start in range(0, len(rows), _CHUNK):  # so that few photographs are in memory
        by_photograph += detector(
            [split.photograph(int(row)) for row in rows[start : start + _CHUNK]]
        )
    matched = _match(split, rows, _suppress(by_photograph, 0.0, overlap))
    return calibrate_threshold(
        ScoredDetections(
            gather_rows(matched.scores.astype(np.float64)),
            gather_rows(matched.correct),
            int(gather_rows(np.array([matched.num_items])).sum()),
        )
    )


def _suppress(
    by_photograph: list[list[Detection]], threshold: float, overlap: float
) -> list[list[Detection]]:
    return [suppress_across_categories(x, threshold, overlap) for x in by_photograph]


def _match(
    split: Split, rows: np.ndarray, by_photograph: list[list[Detection]]
) -> ScoredDetections:
    """Matches detections with the items of their photographs.

    Args:
        split: the photographs and items.
        rows: (I,) row of an item of each photograph.
        by_photograph: detections in each photograph.
    """
    items = split.items
    item_rows = [np.flatnonzero(items.record == items.record[row]) for row in rows]
    boxes = [items.box[x].astype(np.float64) for x in item_rows]
    return match_detections(by_photograph, boxes, [items["category_id"][x] for x in item_rows])
