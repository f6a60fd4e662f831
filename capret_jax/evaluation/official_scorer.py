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
# A retrieved box is the right item's from this overlap on.
GALLERY_IOU = 0.5
# Overlap that a query's box must have with the item it is taken for, in the stricter numbers.
QUERY_IOU_FLOOR = 0.5
FLOOR_KEY = f"query_iou_floor_{QUERY_IOU_FLOOR}"
# Why no detection speaks for a query item.
MISSED, WITHOUT_RESULTS = -1, -2

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
    speakers = assign(results, queries, query_iou_floor)
    answers: dict[tuple, list[Entry]] = defaultdict(list)
    for item in gallery:
        answers[item["pair_id"], item["style"], item["gallery_image_id"]].append(item)
    first = [
        _first_right(results[speaker], item, answers) if speaker >= 0 else max(TOP_K)
        for speaker, item in zip(speakers, asked(queries), strict=True)
    ]
    missed, without = ((speakers == reason).sum() for reason in (MISSED, WITHOUT_RESULTS))
    return Score(np.array(first), int(missed), int(without))


def asked(queries: list[Entry]) -> list[Entry]:
    """The query items that have an identity, style > 0.

    Raises:
        InputError: there is none.
    """
    items = [item for item in queries if item["style"] > 0]
    if not items:
        raise InputError("no query item has style > 0, so there is nothing to score.")
    return items


def assign(results: list[Entry], queries: list[Entry], query_iou_floor: float = 0.0) -> np.ndarray:
    """Which detection speaks for each query item with style > 0.

    Returns:
        (Q,) int64 positions in `results`; `MISSED` where no detection of the right class was
        assigned to the item, `WITHOUT_RESULTS` where its image has none at all.
    """
    detected, owned = _by(results, "query_image_id"), _by(queries, "query_image_id")
    speakers = np.full(len(queries), WITHOUT_RESULTS)
    for image in detected.keys() & owned.keys():
        items = [queries[i] for i in owned[image]]
        speakers[owned[image]] = _speakers(results, detected[image], items, query_iou_floor)
    return speakers[[item["style"] > 0 for item in queries]]


def _by(entries: list[Entry], key: str) -> dict[Any, list[int]]:
    """Positions of the entries, by the value of a key."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, entry in enumerate(entries):
        groups[entry[key]].append(i)
    return groups


def _speakers(
    results: list[Entry], detected: list[int], items: list[Entry], floor: float
) -> list[int]:
    """For each item of an image, the best-scored detection assigned to it with the right class."""
    boxes = entry_boxes([results[i] for i in detected], "query_bbox")
    overlap = box_iou(boxes, entry_boxes(items, "bbox"))
    owners = np.where(overlap.max(axis=1) >= floor, overlap.argmax(axis=1), -1)  # the first of ties
    speakers = []
    for place, item in enumerate(items):
        candidates = [
            i
            for i, owner in zip(detected, owners, strict=True)
            if owner == place and results[i]["query_cls"] == item["cls"]
        ]
        speakers.append(max(candidates, key=lambda i: results[i]["query_score"], default=MISSED))
    return speakers


def _first_right(detection: Entry, item: Entry, answers: dict[tuple, list[Entry]]) -> int:
    retrieved = zip(detection["gallery_image_id"], detection["gallery_bbox"], strict=True)
    for rank, (image, box) in enumerate(retrieved):
        if rank == max(TOP_K):
            break
        right = answers.get((item["pair_id"], item["style"], image), [])
        if right:
            overlap = box_iou(np.array([box], np.float64), entry_boxes(right, "bbox"))
            if overlap.max() >= GALLERY_IOU:
                return rank
    return max(TOP_K)


def entry_boxes(entries: list[Entry], key: str) -> np.ndarray:
    """(n, 4) float64, the entries' boxes."""
    return np.array([entry[key] for entry in entries], np.float64).reshape(-1, 4)
