"""Scores DeepFashion2's official result files by its official rules (consumer-to-shop retrieval).

The rules are those of the dataset's own script, which assigns each detection to the query item that
it overlaps most, however little; `query_iou_floor` asks for more. File formats: lists of objects,
boxes x1, y1, x2, y2 in pixels; `QUERY_KEYS`, `GALLERY_KEYS` and `RESULT_KEYS` name what each holds.
"""

import json
import os
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from capret_jax.errors import InputError
from capret_jax.retrieval.metrics import TOP_K

QUERY_KEYS = ("query_image_id", "bbox", "cls", "style", "pair_id")
GALLERY_KEYS = ("gallery_image_id", "bbox", "style", "pair_id")
RESULT_KEYS = (
    "query_image_id",
    "query_bbox",
    "query_cls",
    "query_score",
    "gallery_image_id",
    "gallery_bbox",
)
# A retrieved box is the right item's from this overlap on.
_GALLERY_IOU = 0.5

Entry = dict[str, Any]


class Score(NamedTuple):
    """How a result file did.

    Attributes:
        first: (Q,) int64, rank from 0 of the first right answer to each query item with style > 0,
            in the file's order; 20 where there is none among 20.
        missed: query items in images with results, to which no detection of the right class was
            assigned.
        without_results: query items in images without any result.
    """

    first: np.ndarray
    missed: int
    without_results: int

    def as_dict(self) -> dict[str, float]:
        """ "top_1" ... "top_20" as fractions of the queries, "missed" and "queries"."""
        accuracy = {f"top_{k}": float((self.first < k).mean()) for k in TOP_K}
        return accuracy | {
            "missed": self.missed,
            "without_results": self.without_results,
            "queries": len(self.first),
        }


def read_entries(path: str | os.PathLike, keys: tuple[str, ...]) -> list[Entry]:
    """A JSON list of objects that have these keys.

    Raises:
        InputError: it is something else; the message names the first entry that is wrong.
    """
    try:
        with open(path) as file:
            entries = json.load(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no readable JSON file: {error}.") from error
    if not isinstance(entries, list):
        raise InputError(f"{path} holds a {type(entries).__name__}, not a list of objects.")
    for i, entry in enumerate(entries):
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise InputError(f"{path}: entry {i} has no {missing[0]!r}; each needs {keys}.")
    return entries


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, 4) and (B, 4) boxes x1, y1, x2, y2 -> (A, B) intersection over union; 0 if both empty."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    sides = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner, 0, None)
    shared = sides.prod(axis=2)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(axis=1) for x in (a, b)]
    union = areas[0][:, None] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def score(
    results: list[Entry],
    queries: list[Entry],
    gallery: list[Entry],
    query_iou_floor: float = 0.0,
) -> Score:
    """Judges detections and what they retrieved.

    Args:
        results: entries with `RESULT_KEYS`; one per detected item.
        queries: entries with `QUERY_KEYS`, all items of the query images, style 0 included: a
            detection of such an item is not taken for one of another.
        gallery: entries with `GALLERY_KEYS`.
        query_iou_floor: least overlap of a detection with the item that it is assigned to; the
            official rules have none.

    Raises:
        InputError: there is no query item with style > 0.
    """
    detected, asked = _by(results, "query_image_id"), _by(queries, "query_image_id")
    answers: dict[tuple, list[Entry]] = defaultdict(list)
    for item in gallery:
        answers[item["pair_id"], item["style"], item["gallery_image_id"]].append(item)

    first, missed, without_results = [], 0, 0
    chosen = {
        image: _detections(detected[image], items, query_iou_floor)
        for image, items in asked.items()
        if image in detected
    }
    position: dict[Any, int] = defaultdict(int)
    for item in queries:
        image = item["query_image_id"]
        place, position[image] = position[image], position[image] + 1
        if item["style"] <= 0:
            continue
        detection = chosen[image][place] if image in chosen else None
        without_results += image not in chosen
        missed += image in chosen and detection is None
        first.append(_first_right(detection, item, answers) if detection else max(TOP_K))
    if not first:
        raise InputError("no query item has style > 0, so there is nothing to score.")
    return Score(np.array(first), missed, without_results)


def _by(entries: list[Entry], key: str) -> dict[Any, list[Entry]]:
    groups: dict[Any, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry[key]].append(entry)
    return dict(groups)


def _detections(results: list[Entry], items: list[Entry], floor: float) -> list[Entry | None]:
    """For each item of an image, the best-scored detection assigned to it with the right class."""
    overlap = box_iou(_boxes(results, "query_bbox"), _boxes(items, "bbox"))
    assigned = overlap.argmax(axis=1)  # ties go to the first item
    close = overlap.max(axis=1) >= floor
    chosen: list[Entry | None] = []
    for place, item in enumerate(items):
        candidates = [
            result
            for result, owner, enough in zip(results, assigned, close, strict=True)
            if owner == place and enough and result["query_cls"] == item["cls"]
        ]
        chosen.append(max(candidates, key=lambda r: r["query_score"], default=None))
    return chosen


def _first_right(detection: Entry, item: Entry, answers: dict[tuple, list[Entry]]) -> int:
    retrieved = zip(detection["gallery_image_id"], detection["gallery_bbox"], strict=True)
    for rank, (image, box) in enumerate(retrieved):
        if rank == max(TOP_K):
            break
        right = answers.get((item["pair_id"], item["style"], image), [])
        if right:
            overlap = box_iou(np.array([box], np.float64), _boxes(right, "bbox"))
            if overlap.max() >= _GALLERY_IOU:
                return rank
    return max(TOP_K)


def _boxes(entries: list[Entry], key: str) -> np.ndarray:
    return np.array([entry[key] for entry in entries], np.float64).reshape(-1, 4)
