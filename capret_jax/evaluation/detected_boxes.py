"""The protocol with detected boxes in place of the ground truth's, on both sides."""

import dataclasses
import json
import os

import numpy as np

from capret_jax.data.batch import NO_IDENTITY
from capret_jax.data.items import ItemTable
from capret_jax.data.schema import CATEGORIES
from capret_jax.detection.boxes import box_iou
from capret_jax.errors import InputError
from capret_jax.evaluation.official_scorer import GALLERY_IOU, Entry, assign, score
from capret_jax.evaluation.protocol import RESULTS_PER_QUERY, Protocol, result_entries
from capret_jax.retrieval.engines import ExactEngine
from capret_jax.retrieval.metrics import average_precision

# Queries ranked at once over the whole gallery.
_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Detections:
    """Boxes that a detector found in the photographs of a split.

    Attributes:
        items: one row per detection; of the attributes only image_id and category_id.
        scores: (n,) float64, confidences.
        skipped: detections in photographs that the split does not have.
    """

    items: ItemTable
    scores: np.ndarray
    skipped: int


@dataclasses.dataclass(frozen=True)
class DetectedRanking:
    """What came of them, by query of the protocol.

    Attributes:
        results: in the official result format, one per detection in consumers' photographs.
        precision: (Q,) float64, average precision.
        first: (Q,) int64, rank of the first right answer by the official scorer, from 0.
    """

    results: list[Entry]
    precision: np.ndarray
    first: np.ndarray


def read_detections(path: str | os.PathLike, truth: ItemTable) -> Detections:
    """Reads COCO's result format: a list of {"image_id", "category_id", "bbox", "score"}.

    Args:
        path: JSON; `bbox` is x, y, width, height in pixels, `category_id` 1..13.
        truth: the split's items, which tell the photographs and their sources.

    Raises:
        InputError: the file is something else, or has no detection on either side.
    """
    detections = make_detections(_read(path), truth)
    for side, name in (
        (detections.items.is_shop, "shop"),
        (~detections.items.is_shop, "consumers'"),
    ):
        if not side.any():
            raise InputError(f"{path} has no detection in any of the split's {name} photographs.")
    return detections


def make_detections(entries: list[Entry], truth: ItemTable) -> Detections:
    """Detections from COCO's result format, see `read_detections`."""
    images, first = np.unique(truth["image_id"], return_index=True)
    image = np.array([int(entry["image_id"]) for entry in entries], np.int64)
    row = first[np.searchsorted(images, image).clip(max=len(images) - 1)]
    known = np.flatnonzero(truth["image_id"][row] == image)
    known = known[np.argsort(truth.record[row[known]], kind="stable")]
    boxes = np.array([entry["bbox"] for entry in entries], np.float32).reshape(-1, 4)[known]
    table = ItemTable(
        record=truth.record[row[known]],
        is_shop=truth.is_shop[row[known]],
        box=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        attributes={
            "image_id": image[known],
            "category_id": np.array([int(e["category_id"]) for e in entries], np.int64)[known],
        },
    )
    scores = np.array([float(entry["score"]) for entry in entries], np.float64)[known]
    return Detections(table, scores, len(entries) - len(known))


def _read(path: str | os.PathLike) -> list[Entry]:
    try:
        with open(path) as file:
            entries = json.load(file)
    except (OSError, ValueError) as error:
        raise InputError(f"evaluation.detections={str(path)!r} cannot be read: {error}.") from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} must hold a list of detections, COCO's result format.")
    for i, entry in enumerate(entries):
        try:
            _, _, width, height = (float(x) for x in entry["bbox"])
            fits = width > 0 and height > 0 and 1 <= entry["category_id"] <= len(CATEGORIES)
            int(entry["image_id"]), float(entry["score"])
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise InputError(
                f'{path}: entry {i} is no detection; expected {{"image_id": 1, "category_id": 1..'
                f'{len(CATEGORIES)}, "bbox": [x, y, width, height], "score": 0.9}}.'
            )
    return entries


def answer(detections: Detections, embeddings: np.ndarray, protocol: Protocol) -> DetectedRanking:
    """Searches every detection of consumers' photographs among those of shop pictures.

    Average precision is over the ranking of all shop detections by the one that speaks for the
    query (official assignment, `scoring.assign`). A shop detection is relevant when it is the most
    confident of those that overlap the same item by 0.5 or more, each with its best item, and that
    item has the query's identity; items that nothing detected count as never found.

    Args:
        detections: of the split.
        embeddings: (n, E) float32, one per detection.
        protocol: of the split.
    """
    table, truth = detections.items, protocol.truth
    queries, gallery = np.flatnonzero(~table.is_shop), np.flatnonzero(table.is_shop)
    index = ExactEngine(embeddings[gallery])
    neighbours, _ = index.search(embeddings[queries], RESULTS_PER_QUERY)
    scores = detections.scores[queries]
    results = result_entries(table, queries, gallery, neighbours, scores)
    speakers = assign(results, truth.queries)[protocol.place]
    known = _identity_of_entries(protocol)
    identities = _identities(detections, gallery, protocol, known)
    answers = (known == protocol.query_identity[:, None]).sum(axis=1)
    precision = np.zeros(len(speakers))
    spoken = np.flatnonzero(speakers >= 0)
    for chunk in (spoken[i : i + _CHUNK] for i in range(0, len(spoken), _CHUNK)):
        order, _ = index.search(embeddings[queries[speakers[chunk]]], len(gallery))
        precision[chunk] = average_precision(
            identities[order], protocol.query_identity[chunk], answers[chunk]
        )
    first = score(results, truth.queries, truth.gallery).first[protocol.place]
    return DetectedRanking(results, precision, first)


def _identities(
    detections: Detections, gallery: np.ndarray, protocol: Protocol, known: np.ndarray
) -> np.ndarray:
    """(G,) int64, the identity that each shop detection stands for."""
    table = detections.items
    of_image: dict[int, list[int]] = {}
    for position, entry in enumerate(protocol.truth.gallery):
        of_image.setdefault(entry["gallery_image_id"], []).append(position)
    identities = np.full(len(gallery), NO_IDENTITY)
    taken = set()
    for position in np.argsort(-detections.scores[gallery], kind="stable"):
        row = gallery[position]
        items = of_image.get(int(table["image_id"][row]), [])
        if not items:
            continue
        boxes = np.array([protocol.truth.gallery[i]["bbox"] for i in items], np.float64)
        overlap = box_iou(table.box[[row]].astype(np.float64), boxes)[0]
        best = items[overlap.argmax()]
        if overlap.max() >= GALLERY_IOU and best not in taken:
            taken.add(best)
            identities[position] = known[best]
    return identities


def _identity_of_entries(protocol: Protocol) -> np.ndarray:
    """Of each entry of the true gallery, numbered as the protocol's queries are."""
    numbers = {
        (entry["pair_id"], entry["style"]): identity
        for entry, identity in zip(protocol.asked(), protocol.query_identity, strict=True)
    }
    gallery = protocol.truth.gallery
    return np.array([numbers.get((e["pair_id"], e["style"]), NO_IDENTITY) for e in gallery])
