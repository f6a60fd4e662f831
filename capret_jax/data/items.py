"""The item table: one row per fashion item of a split, without pixels."""

import contextlib
import dataclasses
import json
import os
import pathlib
import uuid
from typing import Any

import numpy as np
from tqdm import tqdm

from capret_jax.data.batch import NO_IDENTITY
from capret_jax.data.records import Records
from capret_jax.data.schema import DETAILS, LEVELS
from capret_jax.errors import InputError

_ATTRIBUTES = ("image_id", "pair_id", "number", "style", "category_id", *LEVELS, *DETAILS)
# Version of the layout of a cached table; a table of another version is made again.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class ItemTable:
    """Columns of equal length n.

    Attributes:
        record: (n,) int64 index of the item's photograph in the split's records, ascending.
        is_shop: (n,) bool, True for shop pictures, False for consumers' photographs.
        box: (n, 4) float32 x1, y1, x2, y2 in pixels.
        attributes: name -> (n,) int64, for image_id, pair_id, number (the n of the annotation's
            item<n>), style, category_id, the levels and the details; a detail is 0 where an item
            does not have it or the dataset does not annotate it.
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
        """Returns the attributes of one item as Python integers."""
        return {name: int(column[row]) for name, column in self.attributes.items()}

    def rows_with(self, row: int) -> np.ndarray:
        """Returns the rows of all items of the same photograph."""
        return np.arange(*np.searchsorted(self.record, self.record[row] + np.array([0, 1])))

    def rows_beside(self, row: int) -> np.ndarray:
        """Returns the rows of the other items of the same photograph."""
        return np.setdiff1d(self.rows_with(row), row)

    def identities(self) -> np.ndarray:
        """Numbers the distinct (pair_id, style > 0) from 0, in ascending order.

        Returns:
            (n,) int64; `NO_IDENTITY` where style is 0.
        """
        known = np.flatnonzero(self["style"] > 0)
        pairs = np.stack([self["pair_id"][known], self["style"][known]])
        order = np.lexsort(pairs[::-1])
        pairs = pairs[:, order]
        is_new = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
        labels = np.full(len(self), NO_IDENTITY, np.int64)
        labels[known[order]] = np.cumsum(np.concatenate([[False], is_new])[: len(order)])
        return labels

    def training_identities(self) -> np.ndarray:
        """Numbers the identities seen by both sources from 0.

        Returns:
            (n,) int64 class of each item; `NO_IDENTITY` for items of other or no identities.
        """
        labels = self.identities()
        known = labels != NO_IDENTITY
        seen = np.zeros((2, labels.max(initial=NO_IDENTITY) + 1), bool)
        seen[self.is_shop[known].astype(int), labels[known]] = True
        in_both = seen.all(axis=0)
        classes = np.where(in_both, np.cumsum(in_both) - 1, NO_IDENTITY)
        labels[known] = classes[labels[known]]
        return labels


def read_items(records: Records) -> ItemTable:
    """Makes the item table of a split from the annotation of every photograph."""
    rows = []
    description = f"reading {records.split} items"
    # A small split is read before the bar would be shown.
    indices = tqdm(range(len(records)), description, unit="image", leave=False, delay=2)
    for index in indices:
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
        attributes={name: np.array([n[name] for n in numbers_], np.int64) for name in _ATTRIBUTES},
    )


def load_items(records: Records) -> ItemTable:
    """Loads the item table of a split from the prepared dataset's folder; makes it if necessary.

    Reading every annotation means reading every byte of the records. So the table is kept as
    `items_<split>.npz` beside them, with a fingerprint of the record files. It is made again when
    the fingerprint differs or the file is damaged, and not kept when the folder is read-only.

    Raises:
        InputError: a file of the records is missing or damaged.
    """
    missing = [file for file in records.files if not file.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]} is missing: restore it, or delete {records.folder} to prepare it again."
        )
    path = records.folder / f"items_{records.split}.npz"
    fingerprint = _fingerprint(records)
    items = _read_table(path, fingerprint)
    if items is None:
        records.check_lengths()
        items = read_items(records)
        _write_table(path, items, fingerprint)
    return items


def _fingerprint(records: Records) -> str:
    """Describes everything that the table of a split depends on."""
    files = [(file.name, file.stat()) for file in records.files]
    return json.dumps(
        {
            "format": _FORMAT,
            "attributes": _ATTRIBUTES,
            "split": records.split,
            "records": len(records),
            "files": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files],
        }
    )


def _read_table(path: pathlib.Path, fingerprint: str) -> ItemTable | None:
    """Reads a kept table; None where there is none, or not one with this fingerprint."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as table:
            if str(table["fingerprint"]) != fingerprint:
                return None
            attributes = {name: table[f"attributes/{name}"] for name in _ATTRIBUTES}
            items = ItemTable(table["record"], table["is_shop"], table["box"], attributes)
    except Exception:  # a damaged file raises many kinds in zipfile and NumPy
        return None
    lengths = {len(column) for column in (items.is_shop, items.box, *attributes.values())}
    return items if lengths == {len(items.record)} else None


def _write_table(path: pathlib.Path, items: ItemTable, fingerprint: str) -> None:
    """Keeps a table; other processes see all of it or nothing."""
    columns: dict[str, Any] = {
        f"attributes/{name}": column for name, column in items.attributes.items()
    }
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    columns |= {"record": items.record, "is_shop": items.is_shop, "box": items.box}
    with contextlib.suppress(OSError):  # the folder is read-only or full
        try:
            with open(partial, "xb") as file:
                np.savez(file, fingerprint=np.array(fingerprint), **columns)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
