"""The retrieval protocol with detected boxes instead of ground-truth boxes, on both sides."""

import dataclasses
import json
import os

import numpy as np
from jax.sharding import Mesh

from capret_jax.buckets.access import staged
from capret_jax.data.batch import NO_IDENTITY
from capret_jax.data.items import ItemTable
from capret_jax.data.json_values import as_box, as_int, as_number
from capret_jax.data.schema import CATEGORIES
from capret_jax.detection.boxes import box_iou
from capret_jax.errors import InputError
from capret_jax.evaluation.mesh_ranking import LabelledEmbeddings, rank_on_mesh
from capret_jax.evaluation.official_scorer import GALLERY_IOU, Entry, assign_detections, score
from capret_jax.evaluation.protocol import RESULTS_PER_QUERY, Protocol, result_entries

# Identity of detections for which no item is relevant; the data has none below NO_IDENTITY.
_UNASSIGNED = NO_IDENTITY - 1


@dataclasses.dataclass(frozen=True)
class DetectionTable:
    """A detector's boxes in the photographs of a split.

    Attributes:
        items: one row per detection; of the attributes only image_id and category_id.
        scores: (n,) float64 confidences.
        skipped: number of detections in photographs that the split lacks.
    """

    items: ItemTable
    scores: np.ndarray
    skipped: int

    @property
    def on_both_sides(self) -> bool:
        """Returns True if there are detections in shop pictures and in consumers' photographs."""
        return len(np.unique(self.items.is_shop)) == 2


@dataclasses.dataclass(frozen=True)
class DetectedRanking:
    """Retrieval results with detected boxes, for the Q queries of the protocol.

    Attributes:
        results: entries in the official result format, one per detection in consumers' photographs.
        precision: (Q,) float64 average precision.
        first: (Q,) int64 rank from 0 of the first relevant result, by the official scorer.
    """

    results: list[Entry]
    precision: np.ndarray
    first: np.ndarray


def read_detections(path: str | os.PathLike, items: ItemTable) -> DetectionTable:
    """Reads COCO's result format: a list of {"image_id", "category_id", "bbox", "score"}.

    Args:
        path: JSON file; `bbox` is x, y, width, height in pixels, `category_id` 1..13.
        items: the ground-truth items of the split, which define its photographs and their sources.

    Raises:
        InputError: the file has another content, or lacks detections in shop pictures or in
            consumers' photographs.
    """
    detections = make_detections(_read(path), items)
    for side, name in (
        (detections.items.is_shop, "shop"),
        (~detections.items.is_shop, "consumers'"),
    ):
        if not side.any():
            raise InputError(f"{path} has no detection in any of the split's {name} photographs.")
    return detections


def make_detections(entries: list[Entry], items: ItemTable) -> DetectionTable:
    """Makes a table of entries in COCO's result format, see `read_detections`."""
    images, first = np.unique(items["image_id"], return_index=True)
    image = np.array([int(entry["image_id"]) for entry in entries], np.int64)
    row = first[np.searchsorted(images, image).clip(max=len(images) - 1)]
    known = np.flatnonzero(items["image_id"][row] == image)
    known = known[np.argsort(items.record[row[known]], kind="stable")]
    boxes = np.array([entry["bbox"] for entry in entries], np.float32).reshape(-1, 4)[known]
    table = ItemTable(
        record=items.record[row[known]],
        is_shop=items.is_shop[row[known]],
        box=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        attributes={
            "image_id": image[known],
            "category_id": np.array([int(e["category_id"]) for e in entries], np.int64)[known],
        },
    )
    scores = np.array([float(entry["score"]) for entry in entries], np.float64)[known]
    return DetectionTable(table, scores, len(entries) - len(known))


def _read(path: str | os.PathLike) -> list[Entry]:
    try:
        with open(staged(path), encoding="utf-8-sig") as file:
            entries = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"evaluation.detections={str(path)!r} cannot be read: {error}.") from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} must hold a list of detections, COCO's result format.")
    detections = []
    for i, entry in enumerate(entries):
        try:
            detections.append(_detection(entry))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f'{path}: entry {i} is no detection ({error}); expected {{"image_id": 1, '
                f'"category_id": 1..{len(CATEGORIES)}, "bbox": [x, y, width, height], '
                '"score": 0.9}.'
            ) from error
    if all(max(detection["bbox"]) <= 1 for detection in detections):
        raise InputError(
            f"{path}: all boxes look like fractions of the photographs: multiply them by width and "
            "height, since boxes are in pixels."
        )
    return detections


def _detection(entry: Entry) -> Entry:
    box, category = as_box(entry["bbox"]), as_int(entry["category_id"])
    if min(box[2:]) <= 0:
        raise ValueError(f"the box {box} has no area")
    if not 1 <= category <= len(CATEGORIES):
        raise ValueError(f"there is no category {category}; they count from 1")
    return {
        "image_id": as_int(entry["image_id"]),
        "category_id": category,
        "bbox": box,
        "score": as_number(entry["score"]),
    }


def rank_detections(
    detections: DetectionTable, embeddings: np.ndarray, protocol: Protocol, mesh: Mesh
) -> DetectedRanking:
    """Ranks the detections in shop pictures for every detection in consumers' photographs.

    The average precision of a query is that of the ranking of all shop detections by the detection
    assigned to the query (`official_scorer.assign_detections`); 0 without one. Each shop detection
    belongs to the gallery item that it overlaps most, by an IoU of 0.5 or more; per item only the
    most confident counts. It is relevant when that item has the query's identity. Gallery items
    without a detection count as relevant items that are never retrieved.

    Args:
        detections: the detections in the split's photographs.
        embeddings: (n, E) float32 embeddings of the detections, compared by inner products.
        protocol: the split's queries and gallery.
        mesh: mesh of all devices of all processes, which all have to call it.
    """
    table, ground_truth = detections.items, protocol.ground_truth
    queries, gallery = np.flatnonzero(~table.is_shop), np.flatnonzero(table.is_shop)
    entry_identities = _gallery_entry_identities(protocol)
    shop = LabelledEmbeddings(
        embeddings[gallery], _shop_identities(detections, gallery, protocol, entry_identities)
    )
    consumer = LabelledEmbeddings(embeddings[queries], np.full(len(queries), _UNASSIGNED))
    neighbours = rank_on_mesh(mesh, consumer, shop, RESULTS_PER_QUERY).neighbours
    scores = detections.scores[queries]
    results = result_entries(table, queries, gallery, neighbours, scores)
    assigned = assign_detections(results, ground_truth.queries)[protocol.query_positions]
    relevant = (entry_identities == protocol.query_identity[:, None]).sum(axis=1)
    precision = np.zeros(len(assigned))
    detected = np.flatnonzero(assigned >= 0)
    chosen = LabelledEmbeddings(
        embeddings[queries[assigned[detected]]], protocol.query_identity[detected]
    )
    ranking = rank_on_mesh(mesh, chosen, shop, 1, relevant[detected])
    precision[detected] = ranking.precision
    official = score(results, ground_truth.queries, ground_truth.gallery)
    return DetectedRanking(results, precision, official.first[protocol.query_positions])


def _shop_identities(
    detections: DetectionTable,
    gallery: np.ndarray,
    protocol: Protocol,
    entry_identities: np.ndarray,
) -> np.ndarray:
    """Returns the identity of the gallery item that each shop detection belongs to.

    Args:
        detections: the detections in the split's photographs.
        gallery: (G,) int64 rows of the shop detections.
        protocol: the split's queries and gallery.
        entry_identities: identities of the ground truth's gallery entries.

    Returns:
        (G,) int64; `NO_IDENTITY` where it belongs to none, or is not the item's most confident.
    """
    table, entries = detections.items, protocol.ground_truth.gallery
    entries_of_image: dict[int, list[int]] = {}
    for position, entry in enumerate(entries):
        entries_of_image.setdefault(entry["gallery_image_id"], []).append(position)
    identities = np.full(len(gallery), NO_IDENTITY)
    matched = set()
    for position in np.argsort(-detections.scores[gallery], kind="stable"):
        row = gallery[position]
        in_image = entries_of_image.get(int(table["image_id"][row]), [])
        if not in_image:
            continue
        boxes = np.array([entries[i]["bbox"] for i in in_image], np.float64)
        overlap = box_iou(table.box[[row]].astype(np.float64), boxes)[0]
        best = in_image[overlap.argmax()]
        if overlap.max() >= GALLERY_IOU and best not in matched:
            matched.add(best)
            identities[position] = entry_identities[best]
    return identities


def _gallery_entry_identities(protocol: Protocol) -> np.ndarray:
    """Returns the int identities of the gallery entries, numbered as in `query_identity`."""
    identities = {
        (entry["pair_id"], entry["style"]): identity
        for entry, identity in zip(protocol.query_entries(), protocol.query_identity, strict=True)
    }
    entries = protocol.ground_truth.gallery
    return np.array([identities.get((e["pair_id"], e["style"]), NO_IDENTITY) for e in entries])
