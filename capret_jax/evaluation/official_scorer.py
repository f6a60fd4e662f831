"""Scores DeepFashion2's official result files by its official rules (consumer-to-shop retrieval).

The rules are those of the dataset's own script: a detection is assigned to the query item that it
overlaps most, however little. `query_iou_floor` requires an overlap. File formats: lists of objects
with boxes x1, y1, x2, y2 in pixels; `QUERY_KEYS`, `GALLERY_KEYS` and `RESULT_KEYS` list their keys.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from capret_jax.buckets.access import staged
from capret_jax.data.json_values import as_box, as_int, as_number
from capret_jax.data.schema import CATEGORIES
from capret_jax.detection.boxes import box_iou
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
# Lowest IoU at which a retrieved box counts as the box of a gallery item.
GALLERY_IOU = 0.5
# Least IoU of a query's box with the item that it is assigned to, in the stricter numbers.
QUERY_IOU_FLOOR = 0.5
FLOOR_KEY = f"query_iou_floor_{QUERY_IOU_FLOOR}"
# Reasons why a query item has no assigned detection.
MISSED, WITHOUT_RESULTS = -1, -2

Entry = dict[str, Any]


class Score(NamedTuple):
    """The score of a result file.

    Attributes:
        first: (Q,) int64 rank from 0 of the first relevant result of each query item with
            style > 0, in the file's order; 20 where none of the first 20 is relevant.
        missed: number of query items in images with results, to which no detection of the right
            class was assigned.
        without_results: number of query items in images without any result.
    """

    first: np.ndarray
    missed: int
    without_results: int

    def as_dict(self) -> dict[str, float]:
        """Returns fractions "top_1" ... "top_20" of the queries, and the numbers of query items.

        The latter are "missed", "without_results" and "queries", which counts all of them.
        """
        accuracy = {f"top_{k}": float((self.first < k).mean()) for k in TOP_K}
        return accuracy | {
            "missed": self.missed,
            "without_results": self.without_results,
            "queries": len(self.first),
        }


def read_entries(path: str | os.PathLike, keys: tuple[str, ...]) -> list[Entry]:
    """Reads a JSON list of objects and checks that each has the given keys, of the right types.

    Returns:
        The entries with these keys alone; ids are whole numbers and boxes finite ones, even where
        the file has them as text.

    Raises:
        InputError: the file has another content; the message names the first wrong entry.
    """
    try:
        with open(staged(path), encoding="utf-8-sig") as file:
            entries = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no readable JSON file: {error}.") from error
    if not isinstance(entries, list):
        raise InputError(f"{path} holds a {type(entries).__name__}, not a list of objects.")
    values = _RESULT_VALUES if keys == RESULT_KEYS else _VALUES
    checked = []
    for i, entry in enumerate(entries):
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise InputError(f"{path}: entry {i} has no {missing[0]!r}; each needs {keys}.")
        for key in keys:
            try:
                entry[key] = values[key](entry[key])
            except (TypeError, ValueError) as error:
                raise InputError(f"{path}: entry {i}, {key}: {error}.") from error
        _check_lengths(entry, f"{path}: entry {i}")
        checked.append({key: entry[key] for key in keys})
    return checked


def _check_lengths(entry: Entry, where: str) -> None:
    images, boxes = entry.get("gallery_image_id"), entry.get("gallery_bbox")
    if isinstance(images, list) and isinstance(boxes, list) and len(images) != len(boxes):
        raise InputError(
            f"{where} has {len(images)} gallery_image_id and {len(boxes)} gallery_bbox."
        )


def _as_class(value: Any) -> int:
    number = as_int(value)
    if not 1 <= number <= len(CATEGORIES):
        raise ValueError(f"there is no class {number}; they count from 1 to {len(CATEGORIES)}")
    return number


def _as_ids(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise ValueError("there is no list of images")
    return [as_int(number) for number in value]


def _as_boxes(value: Any) -> list[list[float]]:
    if not isinstance(value, list):
        raise ValueError("there is no list of boxes")
    return [as_box(box) for box in value]


# Key -> function that reads its value.
_VALUES: dict[str, Callable[[Any], Any]] = {
    "query_image_id": as_int,
    "gallery_image_id": as_int,
    "bbox": as_box,
    "query_bbox": as_box,
    "gallery_bbox": _as_boxes,
    "cls": _as_class,
    "query_cls": _as_class,
    "query_score": as_number,
    "style": as_int,
    "pair_id": as_int,
}
# A query's results are lists.
_RESULT_VALUES = _VALUES | {"gallery_image_id": _as_ids}


def score(
    results: list[Entry],
    queries: list[Entry],
    gallery: list[Entry],
    query_iou_floor: float = 0.0,
) -> Score:
    """Scores detections and the gallery items retrieved with them.

    Args:
        results: entries with `RESULT_KEYS`, one per detected item.
        queries: entries with `QUERY_KEYS`, all items of the query images. Items of style 0 are
            included: detections assigned to them are not available to other items.
        gallery: entries with `GALLERY_KEYS`.
        query_iou_floor: least IoU of a detection with the item that it is assigned to; 0 in the
            official rules.

    Raises:
        InputError: there is no query item with style > 0.
    """
    assigned = assign_detections(results, queries, query_iou_floor)
    relevant: dict[tuple, list[Entry]] = defaultdict(list)
    for item in gallery:
        relevant[item["pair_id"], item["style"], item["gallery_image_id"]].append(item)
    first = [
        _first_relevant_rank(results[position], item, relevant) if position >= 0 else max(TOP_K)
        for position, item in zip(assigned, evaluated_queries(queries), strict=True)
    ]
    missed, without = ((assigned == reason).sum() for reason in (MISSED, WITHOUT_RESULTS))
    return Score(np.array(first), int(missed), int(without))


def evaluated_queries(queries: list[Entry]) -> list[Entry]:
    """Returns the query items that are evaluated: those with an identity, style > 0.

    Raises:
        InputError: there is none.
    """
    items = [item for item in queries if item["style"] > 0]
    if not items:
        raise InputError("no query item has style > 0, so there is nothing to score.")
    return items


def assign_detections(
    results: list[Entry], queries: list[Entry], query_iou_floor: float = 0.0
) -> np.ndarray:
    """Assigns one detection to each query item with style > 0.

    Returns:
        (Q,) int64 positions in `results`; `MISSED` where no detection of the right class was
        assigned to the item, `WITHOUT_RESULTS` where its image has no detection.
    """
    results_of = _positions_by_image(results)
    queries_of = _positions_by_image(queries)
    assigned = np.full(len(queries), WITHOUT_RESULTS)
    for image in results_of.keys() & queries_of.keys():
        detections = [results[i] for i in results_of[image]]
        items = [queries[i] for i in queries_of[image]]
        chosen = _assign_in_image(detections, items, query_iou_floor)
        assigned[queries_of[image]] = [
            MISSED if i is None else results_of[image][i] for i in chosen
        ]
    return assigned[[item["style"] > 0 for item in queries]]


def _positions_by_image(entries: list[Entry]) -> dict[Any, list[int]]:
    """Groups the positions of entries by their query image."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, entry in enumerate(entries):
        groups[entry["query_image_id"]].append(i)
    return groups


def _assign_in_image(detections: list[Entry], items: list[Entry], floor: float) -> list[int | None]:
    """Returns the position of each item's highest-scored detection of its class, or None."""
    overlap = box_iou(_entry_boxes(detections, "query_bbox"), _entry_boxes(items, "bbox"))
    # argmax resolves ties to the first item.
    owners = np.where(overlap.max(axis=1) >= floor, overlap.argmax(axis=1), -1)
    assigned = []
    for position, item in enumerate(items):
        candidates = [
            i
            for i in np.flatnonzero(owners == position).tolist()
            if detections[i]["query_cls"] == item["cls"]
        ]
        best = max(candidates, key=lambda i: detections[i]["query_score"], default=None)
        assigned.append(best)
    return assigned


def _first_relevant_rank(detection: Entry, item: Entry, relevant: dict[tuple, list[Entry]]) -> int:
    """Returns the rank, from 0, of the first retrieved box of the query item; 20 without one.

    Args:
        detection: entry with `RESULT_KEYS`.
        item: the query item that it is assigned to.
        relevant: (pair_id, style, gallery_image_id) -> gallery items.
    """
    retrieved = zip(detection["gallery_image_id"], detection["gallery_bbox"], strict=True)
    for rank, (image, box) in enumerate(retrieved):
        if rank == max(TOP_K):
            break
        in_image = relevant.get((item["pair_id"], item["style"], image), [])
        if in_image:
            overlap = box_iou(np.array([box], np.float64), _entry_boxes(in_image, "bbox"))
            if overlap.max() >= GALLERY_IOU:
                return rank
    return max(TOP_K)


def _entry_boxes(entries: list[Entry], key: str) -> np.ndarray:
    """Returns the (n, 4) float64 boxes of the entries, x1, y1, x2, y2 in pixels."""
    return np.array([entry[key] for entry in entries], np.float64).reshape(-1, 4)
