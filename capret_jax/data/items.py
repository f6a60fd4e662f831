"""The item table: one row per fashion item of a split, without any pixels."""

import dataclasses

import numpy as np

from capret_jax.data.batch import NO_IDENTITY
from capret_jax.data.records import Records
from capret_jax.data.schema import DETAILS, LEVELS

_NUMBERS = ("image_id", "pair_id", "number", "style", "category_id", *LEVELS, *DETAILS)


@dataclasses.dataclass(frozen=True)
class ItemTable:
    """Columns of equal length n.

    Attributes:
        record: (n,) int64, index of the item's photograph in the split's records, ascending.
        is_shop: (n,) bool, True for shop pictures, False for consumers' photographs.
        box: (n, 4) float32 x1, y1, x2, y2 in pixels.
        attributes: name -> (n,) int64, for image_id, pair_id, number (the n of the annotation's
            item<n>), style, category_id, the levels and the details; 0 where an item has no such
            detail, or a dataset knows none.
    """

    record: np.ndarray
    is_shop: np.ndarray
    box: np.ndarray
    attributes: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.record)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.attributes[name]

    def attributes_of(self, row: int) -> dict[str, int]:
        """The attributes of one item, as ints."""
        return {name: int(column[row]) for name, column in self.attributes.items()}

    def rows_beside(self, row: int) -> np.ndarray:
        """The other items of the same photograph."""
        first, last = np.searchsorted(self.record, self.record[row] + np.array([0, 1]))
        return np.setdiff1d(np.arange(first, last), row)

    def identities(self) -> np.ndarray:
        """(n,) int64: 0, 1, ... per distinct (pair_id, style > 0); `NO_IDENTITY` for style 0."""
        labels = np.full(len(self), NO_IDENTITY, np.int64)
        known = self["style"] > 0
        pairs = np.stack([self["pair_id"], self["style"]], axis=1)[known]
        labels[known] = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
        return labels

    def training_identities(self) -> np.ndarray:
        """(n,) int64 classes 0..C-1 of the identities seen by both sources; else `NO_IDENTITY`."""
        labels = self.identities()
        both = np.intersect1d(labels[self.is_shop], labels[~self.is_shop])
        classes = np.searchsorted(both[both != NO_IDENTITY], labels)
        return np.where(np.isin(labels, both) & (labels != NO_IDENTITY), classes, NO_IDENTITY)


def read_items(records: Records) -> ItemTable:
    """Reads the annotation of every photograph once."""
    rows = []
    for index in range(len(records)):
        record = records.annotation(index)
        items = record["items"]
        for i in range(len(items["style"])):
            numbers = dict.fromkeys(DETAILS, 0) | {name: items[name][i] for name in items}
            numbers |= {name: record[name] for name in ("image_id", "pair_id")}
            is_shop = record["source"] == b"shop"
            rows.append((index, is_shop, items["bounding_box"][i], numbers))
    records_, is_shop_, boxes, numbers_ = zip(*rows, strict=True) if rows else ((),) * 4
    return ItemTable(
        record=np.array(records_, np.int64),
        is_shop=np.array(is_shop_, bool),
        box=np.array(boxes, np.float32).reshape(-1, 4),
        attributes={name: np.array([n[name] for n in numbers_], np.int64) for name in _NUMBERS},
    )
