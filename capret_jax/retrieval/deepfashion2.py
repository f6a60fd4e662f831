"""The consumer-to-shop protocol of DeepFashion2 (arXiv 1901.07973) with ground-truth boxes."""

import dataclasses

import numpy as np

from capret_jax.data.items import ItemTable
from capret_jax.errors import InputError
from capret_jax.retrieval.scoring import Entry

# Neighbours per query in the official result file.
RESULTS_PER_QUERY = 20


# Numbers on "ground truth boxes" were published for queries with more right answers than this.
_PUBLISHED_ANSWERS = 5


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Rows of the item table that ask, and rows that may answer.

    Attributes:
        queries: (Q,) int64, consumers' items that have an identity (style > 0).
        gallery: (G,) int64, every shop item; those of style 0 are distractors.
        query_identity, gallery_identity: (Q,) and (G,) int64, equal for a right answer.
    """

    queries: np.ndarray
    gallery: np.ndarray
    query_identity: np.ndarray
    gallery_identity: np.ndarray

    def answers(self) -> np.ndarray:
        """(Q,) int64, right answers to each query in the gallery."""
        identities, counts = np.unique(self.gallery_identity, return_counts=True)
        place = np.searchsorted(identities, self.query_identity).clip(max=len(identities) - 1)
        return np.where(identities[place] == self.query_identity, counts[place], 0)

    def published_subset(self) -> np.ndarray:
        """(Q,) bool, the queries of the published numbers: more than 5 right answers."""
        return self.answers() > _PUBLISHED_ANSWERS


def make_protocol(items: ItemTable) -> Protocol:
    """Queries and gallery of a validation split.

    Raises:
        InputError: the split has no queries, or no gallery.
    """
    queries = np.flatnonzero(~items.is_shop & (items["style"] > 0))
    gallery = np.flatnonzero(items.is_shop)
    for name, rows in (("consumer item with style > 0", queries), ("shop item", gallery)):
        if not len(rows):
            raise InputError(
                f"the validation split has no {name}, so there is nothing to evaluate: check "
                "config.data."
            )
    identities = items.identities()
    return Protocol(queries, gallery, identities[queries], identities[gallery])


def result_entries(items: ItemTable, protocol: Protocol, neighbours: np.ndarray) -> list[Entry]:
    """Answers in the official result format, one entry per query item.

    Args:
        items: the validation split.
        protocol: its queries and gallery.
        neighbours: (Q, >= 20) int64 positions in `protocol.gallery`, best first.
    """
    entries = []
    for query, found in zip(protocol.queries, neighbours, strict=True):
        rows = protocol.gallery[found[:RESULTS_PER_QUERY]]
        entries.append(
            {
                "query_image_id": int(items["image_id"][query]),
                "query_bbox": items.box[query].tolist(),
                "query_cls": int(items["category_id"][query]),
                "query_score": 1.0,  # the boxes are the ground truth
                "gallery_image_id": items["image_id"][rows].tolist(),
                "gallery_bbox": items.box[rows].tolist(),
            }
        )
    return entries


def ground_truth(items: ItemTable) -> tuple[list[Entry], list[Entry]]:
    """Queries and gallery as the official val_query.json and val_gallery.json hold them.

    All items of consumers' photographs are in the first, style 0 included, all shop items in the
    second.
    """
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
    return queries, gallery
