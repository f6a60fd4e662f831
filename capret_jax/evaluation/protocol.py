"""The consumer-to-shop protocol of DeepFashion2 (arXiv 1901.07973): who asks, and what is right."""

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
    asked,
    read_entries,
)

# Neighbours per query in the official result file.
RESULTS_PER_QUERY = 20
# Numbers on "ground truth boxes" were published for queries with more right answers than this.
_PUBLISHED_ANSWERS = 5


class Truth(NamedTuple):
    """The ground truth, as the official files hold it.

    Attributes:
        queries: entries with `QUERY_KEYS`, all items of consumers' photographs.
        gallery: entries with `GALLERY_KEYS`, all shop items; those of style 0 are distractors.
        source: where it is from.
    """

    queries: list[Entry]
    gallery: list[Entry]
    source: str


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Rows of the item table that ask, and rows that may answer.

    Attributes:
        truth: what the rows stand for.
        place: (Q,) int64, of each query among the items of `truth.queries` that have an identity.
            The dataset may lack some, when their photographs are broken.
        queries: (Q,) int64, consumers' items that have an identity (style > 0).
        gallery: (G,) int64, every shop item.
        query_identity, gallery_identity: (Q,) and (G,) int64, equal for a right answer.
    """

    truth: Truth
    place: np.ndarray
    queries: np.ndarray
    gallery: np.ndarray
    query_identity: np.ndarray
    gallery_identity: np.ndarray

    def asked(self) -> list[Entry]:
        """The entries of `truth.queries` that the queries stand for."""
        items = asked(self.truth.queries)
        return [items[place] for place in self.place]

    def answers(self) -> np.ndarray:
        """(Q,) int64, right answers to each query in the gallery."""
        identities, counts = np.unique(self.gallery_identity, return_counts=True)
        place = np.searchsorted(identities, self.query_identity).clip(max=len(identities) - 1)
        return np.where(identities[place] == self.query_identity, counts[place], 0)

    def published_subset(self) -> np.ndarray:
        """(Q,) bool, the queries of the published numbers: more than 5 right answers."""
        return self.answers() > _PUBLISHED_ANSWERS


def read_truth(folder: pathlib.Path) -> Truth | None:
    """The official files beside a prepared dataset; None where there are none.

    Raises:
        InputError: a file holds something else.
    """
    query, gallery = folder / QUERY_FILE, folder / GALLERY_FILE
    if not (query.is_file() and gallery.is_file()):
        return None
    return Truth(
        read_entries(query, QUERY_KEYS),
        read_entries(gallery, GALLERY_KEYS),
        f"{QUERY_FILE} and {GALLERY_FILE}",
    )


def derive_truth(items: ItemTable) -> Truth:
    """The ground truth by the official rule, from the annotations."""
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
    return Truth(queries, gallery, "the annotations")


def make_protocol(items: ItemTable, truth: Truth | None = None) -> Protocol:
    """Queries and gallery of a validation split.

    Args:
        items: of the split.
        truth: the official one; derived when None.

    Raises:
        InputError: the split has no queries, or no gallery.
    """
    truth = truth or derive_truth(items)
    has_identity = items["style"] > 0
    _check_any(~items.is_shop & has_identity, "consumer item with style > 0")
    _check_any(items.is_shop, "shop item")
    queries = _rows(asked(truth.queries), "query_image_id", items, ~items.is_shop)
    gallery = _rows(truth.gallery, "gallery_image_id", items, items.is_shop)
    place = np.flatnonzero(queries >= 0)
    queries, gallery = queries[place], np.unique(gallery[gallery >= 0])
    if not len(queries) or not len(gallery):
        raise InputError(f"{truth.source} name no item of the validation split: other dataset?")
    identities = items.identities()
    return Protocol(truth, place, queries, gallery, identities[queries], identities[gallery])


def _check_any(rows: np.ndarray, name: str) -> None:
    if not rows.any():
        raise InputError(
            f"the validation split has no {name}, so there is nothing to evaluate: check "
            "config.data."
        )


def _rows(entries: list[Entry], key: str, items: ItemTable, among: np.ndarray) -> np.ndarray:
    """The row of each entry: same image, pair and style, and the same box but for rounding."""
    of_image: dict[int, list[int]] = {}
    for row in np.flatnonzero(among).tolist():
        of_image.setdefault(int(items["image_id"][row]), []).append(row)
    rows = np.full(len(entries), -1)
    for i, entry in enumerate(entries):
        same = [
            row
            for row in of_image.get(entry[key], [])
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
    """Answers in the official result format, one entry per query.

    Args:
        items: a table of items, annotated or detected.
        queries: (Q,) int64 rows.
        gallery: (G,) int64 rows.
        neighbours: (Q, >= 20) int64 positions in `gallery`, best first.
        scores: (Q,) confidence of each query's box.
    """
    entries = []
    for query, found, confidence in zip(queries, neighbours, scores, strict=True):
        rows = gallery[found[:RESULTS_PER_QUERY]]
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
