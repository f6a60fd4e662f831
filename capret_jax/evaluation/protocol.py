"""The consumer-to-shop protocol of DeepFashion2 (arXiv 1901.07973): queries, gallery, relevance."""

import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np

from capret_jax.data.items import ItemTable
from capret_jax.data.preparation import GALLERY_FILE, QUERY_FILE
from capret_jax.detection.boxes import box_iou
from capret_jax.errors import InputError
from capret_jax.evaluation.official_scorer import (
    GALLERY_IOU,
    GALLERY_KEYS,
    QUERY_KEYS,
    Entry,
    evaluated_queries,
    read_entries,
)

# Neighbours per query in the official result file.
RESULTS_PER_QUERY = 20
# Published results with ground-truth boxes cover queries with more relevant items than this.
_PUBLISHED_MIN_RELEVANT = 5


class GroundTruth(NamedTuple):
    """The ground truth in the format of the official files.

    Attributes:
        queries: entries with `QUERY_KEYS`, all items of consumers' photographs.
        gallery: entries with `GALLERY_KEYS`, all shop items; those of style 0 are distractors.
        source: the origin of the entries, for reports and error messages.
    """

    queries: list[Entry]
    gallery: list[Entry]
    source: str


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Query and gallery rows of an item table, and which gallery items are relevant.

    Attributes:
        ground_truth: the official entries that the rows belong to.
        query_positions: (Q,) int64 position of each query in
            `evaluated_queries(ground_truth.queries)`. The dataset lacks some of these items when
            their photographs are broken.
        queries: (Q,) int64 rows of consumers' items that have an identity (style > 0).
        gallery: (G,) int64 rows of the shop items.
        query_identity: (Q,) int64 identities of the queries.
        gallery_identity: (G,) int64 identities of the gallery items; those that equal the query's
            are relevant.
    """

    ground_truth: GroundTruth
    query_positions: np.ndarray
    queries: np.ndarray
    gallery: np.ndarray
    query_identity: np.ndarray
    gallery_identity: np.ndarray

    def query_entries(self) -> list[Entry]:
        """Returns the Q official entries of the queries."""
        entries = evaluated_queries(self.ground_truth.queries)
        return [entries[position] for position in self.query_positions]

    def relevant_counts(self) -> np.ndarray:
        """Returns the (Q,) int64 numbers of relevant gallery items."""
        identities, counts = np.unique(self.gallery_identity, return_counts=True)
        place = np.searchsorted(identities, self.query_identity).clip(max=len(identities) - 1)
        return np.where(identities[place] == self.query_identity, counts[place], 0)

    def published_subset(self) -> np.ndarray:
        """Returns (Q,) bool, True for the published subset: more than 5 relevant items."""
        return self.relevant_counts() > _PUBLISHED_MIN_RELEVANT


def read_ground_truth(folder: pathlib.Path) -> GroundTruth | None:
    """Reads the official files in the folder of a prepared dataset; None without them.

    Raises:
        InputError: a file has another content.
    """
    query, gallery = folder / QUERY_FILE, folder / GALLERY_FILE
    if not (query.is_file() and gallery.is_file()):
        return None
    return GroundTruth(
        read_entries(query, QUERY_KEYS),
        read_entries(gallery, GALLERY_KEYS),
        f"{QUERY_FILE} and {GALLERY_FILE}",
    )


def derive_ground_truth(items: ItemTable) -> GroundTruth:
    """Derives the ground truth from the annotations, by the official rule."""
    queries, gallery = [], []
    for row in range(len(items)):
        entry = {
            "bbox": items.box[row].tolist(),
            "cls": int(items["category_id"][row]),
            "style": int(items["style"][row]),
            "pair_id": int(items["pair_id"][row]),
        }
        image = int(items["image_id"][row])
        if items.is_shop[row]:
            gallery.append({"gallery_image_id": image, **entry})
        else:
            queries.append({"query_image_id": image, **entry})
    return GroundTruth(queries, gallery, "the annotations")


def make_protocol(items: ItemTable, ground_truth: GroundTruth | None = None) -> Protocol:
    """Selects the queries and the gallery of a validation split.

    Args:
        items: the items of the split.
        ground_truth: the official one; derived from the annotations when None.

    Raises:
        InputError: the split has no queries, or no gallery.
    """
    ground_truth = ground_truth or derive_ground_truth(items)
    has_identity = items["style"] > 0
    _check_any(~items.is_shop & has_identity, "consumer item with style > 0")
    _check_any(items.is_shop, "shop item")
    entries = evaluated_queries(ground_truth.queries)
    queries = _rows(entries, "query_image_id", items, ~items.is_shop)
    gallery = _rows(ground_truth.gallery, "gallery_image_id", items, items.is_shop)
    positions = np.flatnonzero(queries >= 0)
    queries, gallery = queries[positions], np.unique(gallery[gallery >= 0])
    if not len(queries) or not len(gallery):
        raise InputError(
            f"{ground_truth.source} name no item of the validation split: other dataset?"
        )
    identities = items.identities()
    return Protocol(
        ground_truth, positions, queries, gallery, identities[queries], identities[gallery]
    )


def _check_any(rows: np.ndarray, name: str) -> None:
    if not rows.any():
        raise InputError(
            f"the validation split has no {name}, so there is nothing to evaluate: check "
            "config.data."
        )


def _rows(entries: list[Entry], key: str, items: ItemTable, mask: np.ndarray) -> np.ndarray:
    """Finds the row of each entry: equal image, pair and style, and equal box up to rounding.

    Args:
        entries: official entries.
        key: the key of their image id.
        items: the item table.
        mask: (n,) bool, True for rows that are searched.

    Returns:
        (len(entries),) int64 rows; -1 where the table lacks the item.
    """
    rows_of_image: dict[int, list[int]] = {}
    for row in np.flatnonzero(mask).tolist():
        rows_of_image.setdefault(int(items["image_id"][row]), []).append(row)
    rows = np.full(len(entries), -1)
    for i, entry in enumerate(entries):
        same = [
            row
            for row in rows_of_image.get(entry[key], [])
            if items["style"][row] == entry["style"] and items["pair_id"][row] == entry["pair_id"]
        ]
        if same:
            overlap = box_iou(np.array([entry["bbox"]], np.float64), items.box[same])[0]
            if overlap.max() >= GALLERY_IOU:
                rows[i] = same[overlap.argmax()]
    return rows


def result_entries(
    items: ItemTable,
    queries: np.ndarray,
    gallery: np.ndarray,
    neighbours: np.ndarray,
    scores: np.ndarray,
) -> list[Entry]:
    """Makes retrieval results in the official format, one entry per query.

    Args:
        items: a table of items, annotated or detected.
        queries: (Q,) int64 rows of the queries.
        gallery: (G,) int64 rows of the gallery.
        neighbours: (Q, >= 20) int64 positions in `gallery`, best first.
        scores: (Q,) float confidences of the queries' boxes.
    """
    entries = []
    for query, positions, confidence in zip(queries, neighbours, scores, strict=True):
        rows = gallery[positions[:RESULTS_PER_QUERY]]
        entries.append(
            {
                "query_image_id": int(items["image_id"][query]),
                "query_bbox": items.box[query].tolist(),
                "query_cls": int(items["category_id"][query]),
                "query_score": float(confidence),
                "gallery_image_id": items["image_id"][rows].tolist(),
                "gallery_bbox": items.box[rows].tolist(),
            }
        )
    return entries
