"""What the fusion encoder adds to an evaluation: garments found by phrases, and re-ranking."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from capret_jax.checkpoints.loading import LoadedModel
from capret_jax.config import ViewConfig
from capret_jax.data.captions import category_phrase
from capret_jax.data.pipeline import Split
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.detection.average_precision import average_precision, coco_entries
from capret_jax.detection.phrases import PHRASES, Detection, PhraseDetector, garments
from capret_jax.detection.threshold import (
    ScoredDetections,
    ThresholdCalibration,
    at_threshold,
    calibrate_threshold,
    match_detections,
)
from capret_jax.evaluation.protocol import Protocol
from capret_jax.evaluation.retrieval import Ranking
from capret_jax.models.beit import box_regions
from capret_jax.models.x2vlm import normalize_pixels
from capret_jax.retrieval.engines import Neighbours
from capret_jax.retrieval.metrics import summarize
from capret_jax.retrieval.reranking import Matcher, best_phrases, cross_fit
from capret_jax.retrieval.vision_tokens import Compute, TokenSource, VisionTokens

# Photographs of the training split that the threshold is calibrated on.
_CALIBRATED_ON = 400
# Detections that are less certain are not searched with, nor for.
_FLOOR = 0.05
# PictureBatch encoded at once.
_PICTURES = 32


class Detected(NamedTuple):
    """A split's photographs, looked through.

    Attributes:
        boxes: to search with and for, in COCO's result format: of shop pictures one for each
            garment, of consumers' photographs one for each phrase, since the official scorer takes
            a query's detection by category.
        metrics: "AP", "AP50", "AP75" of all answers, and "threshold", "precision" and "recall" of
            one for each garment from the threshold on.
        calibration: of the threshold, on the training split.
    """

    boxes: list[dict]
    metrics: dict[str, float]
    calibration: ThresholdCalibration


def detect(detector: PhraseDetector, train: Split, validation: Split) -> Detected:
    """Looks for every category in every photograph of the validation split.

    Args:
        detector: with the model.
        train: some of its photographs calibrate_threshold the threshold.
        validation: the split.
    """
    overlap = detector.config.overlap
    rows, found = _look(detector, train, _CALIBRATED_ON)
    calibration = calibrate_threshold(_judge(train, rows, _garments(found, 0.0, overlap)))
    start = time.perf_counter()
    rows, found = _look(detector, validation)
    seconds = time.perf_counter() - start
    counted = _garments(found, calibration.threshold, overlap)
    images = validation.items["image_id"][rows]
    metrics = average_precision(coco_entries(images, found), validation.items)
    metrics |= at_threshold(_judge(validation, rows, counted), calibration.threshold)._asdict()
    metrics |= {"photographs": len(rows), "seconds": seconds}
    shop = validation.items.is_shop[rows]
    single = _garments(found, _FLOOR, overlap)
    likely = [[detection for detection in each if detection.score >= _FLOOR] for each in found]
    boxes = [
        one if is_shop else each for one, each, is_shop in zip(single, likely, shop, strict=True)
    ]
    return Detected(coco_entries(images, boxes), metrics, calibration)


def _garments(
    found: list[list[Detection]], threshold: float, overlap: float
) -> list[list[Detection]]:
    return [garments(each, threshold, overlap) for each in found]


def _look(
    detector: PhraseDetector, split: Split, most: int | None = None
) -> tuple[np.ndarray, list[list[Detection]]]:
    """The first item's row of each photograph, and what was found in it."""
    _, rows = np.unique(split.items.record, return_index=True)
    if most and len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(int)]
    found: list[list[Detection]] = []
    for start in range(0, len(rows), _PICTURES):  # or all of them would be in memory
        found += detector([split.photograph(int(row)) for row in rows[start : start + _PICTURES]])
    return rows, found


def _judge(split: Split, rows: np.ndarray, found: list[list[Detection]]) -> ScoredDetections:
    items = split.items
    same = [np.flatnonzero(items.record == items.record[row]) for row in rows]
    boxes = [items.box[each].astype(np.float64) for each in same]
    return match_detections(found, boxes, [items["category_id"][each] for each in same])


def rerank(
    model: LoadedModel,
    encode: CaptionEncoder,
    split: Split,
    view: ViewConfig,
    margin: float,
    protocol: Protocol,
    ranking: Ranking,
    k: int,
    keep: Callable[[Compute], TokenSource],
) -> tuple[Ranking, dict]:
    """Re-ranks the first k of every query by the words that the model itself finds for it.

    These are the category whose phrase matches the query's picture best: nothing of the ground
    truth. The weight of the match beside the cosine is chosen on the other half of the queries,
    by identity.

    Args:
        model: trained to match.
        encode: texts -> tokens.
        split: the validation split.
        view: what the model sees of an item.
        margin: of crops.
        protocol: of the split.
        ranking: to begin from.
        k: candidates of each query.
        keep: how vision tokens are kept, `MemoryTokens` or `DiskTokens` but for their arguments.

    Returns:
        The new ranking, and its metrics: mAP and top-k, "k", "weights", "category_accuracy" of the
        words, "seconds_per_query", and "items_encoded".
    """
    tokens = keep(VisionTokenEncoder(model, split, view, margin))
    matcher = Matcher(model, encode)
    start = time.perf_counter()
    words = best_phrases(matcher, PHRASES, protocol.queries, tokens)
    found = Neighbours(ranking.neighbours, ranking.scores)
    rows = protocol.gallery[found.rows[:, :k]]
    match = matcher.candidates([category_phrase(int(w) + 1) for w in words], rows, tokens)
    seconds = time.perf_counter() - start
    quality = RerankedMetrics(protocol, ranking, match.shape[1])
    half = protocol.query_identity % 2 == 0
    fitted = cross_fit(found, match, lambda each: quality(each).precision, half)
    better = quality(fitted.found)
    truth = split.items["category_id"][protocol.queries] - 1
    return better, {
        **summarize(better.precision, better.first),
        "k": int(match.shape[1]),
        "weights": list(fitted.weights),
        "category_accuracy": float((words == truth).mean()),
        "seconds_per_query": seconds / len(words),
        "items_encoded": tokens.computed,
    }


class RerankedMetrics:
    """What becomes of a ranking when its first k change places: the others stay where they are."""

    def __init__(self, protocol: Protocol, ranking: Ranking, k: int):
        self._protocol, self._ranking, self._k = protocol, ranking, k
        self._before = self._precision(ranking.neighbours)

    def __call__(self, found: Neighbours) -> Ranking:
        relevant = self._relevant(found.rows)
        first = np.where(relevant.any(axis=1), relevant.argmax(axis=1), self._ranking.first)
        change = self._precision(found.rows) - self._before
        return Ranking(found.rows, found.scores, self._ranking.precision + change, first)

    def _relevant(self, rows: np.ndarray) -> np.ndarray:
        identities = self._protocol.gallery_identity[rows[:, : self._k]]
        return identities == self._protocol.query_identity[:, None]

    def _precision(self, rows: np.ndarray) -> np.ndarray:
        """The first k ranks' share of the average precision."""
        relevant = self._relevant(rows)
        precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
        return (precision * relevant).sum(axis=1) / np.maximum(self._protocol.answers(), 1)


class VisionTokenEncoder:
    """Rows of a split's items -> their vision tokens."""

    def __init__(self, model: LoadedModel, split: Split, view: ViewConfig, margin: float):
        self._model, self._split, self._view, self._margin = model, split, view, margin
        self._regions = jax.jit(box_regions)

    def __call__(self, rows: np.ndarray) -> VisionTokens:
        parts = [self._encode(rows[i : i + _PICTURES]) for i in range(0, len(rows), _PICTURES)]
        return VisionTokens(*map(np.concatenate, zip(*parts, strict=True)))

    def _encode(self, rows: np.ndarray) -> VisionTokens:
        filled = np.concatenate([rows, np.repeat(rows[-1:], _PICTURES - len(rows))])
        size = self._model.config.image_size
        views = [
            self._split.whole_view(np.array([row]), size)
            if self._view.whole
            else self._split.crop_view(int(row), size, self._margin)
            for row in filled
        ]
        pixels = normalize_pixels(jnp.asarray(np.stack([view.image for view in views])))
        states = self._model.encode_image(pixels)
        mask = np.ones(states.shape[:2], bool)
        if self._view.regions:
            states, inside = self._regions(states, np.concatenate([view.boxes for view in views]))
            mask = np.asarray(inside) > 0
        return VisionTokens(np.asarray(states, np.float16)[: len(rows)], mask[: len(rows)])
