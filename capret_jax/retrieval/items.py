"""Items of an index, and the inverted index that filters them by their properties."""

import collections
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from capret_jax.errors import InputError

# Properties of an item by name: its "id", and any others, such as "category" and "shop".
Item = dict[str, Any]
# The value, or the list of alternative values, that an item must have, by property.
Filter = Mapping[str, Any]


class InvertedIndex:
    """Rows by property and value; the postings of a property are computed at first use."""

    def __init__(self, items: list[Item]):
        """
        Args:
            items: one per row; the list may grow, see `clear`.
        """
        self._items = items
        self._postings: dict[str, dict[str, list[int]]] = {}

    def clear(self) -> None:
        """Discards all postings; to be called after items were appended."""
        self._postings.clear()

    def postings(self, name: str) -> dict[str, list[int]]:
        """Returns the rows by value, as text, of one property.

        Raises:
            InputError: no item has the property.
        """
        if name not in self._postings:
            if not any(name in item for item in self._items):
                known = sorted({key for item in self._items for key in item})
                raise InputError(
                    f"no item has a {name!a} to filter by; there are {', '.join(known)}."
                )
            rows: dict[str, list[int]] = {}
            for row, item in enumerate(self._items):
                for value in _as_collection(item.get(name, [])):
                    rows.setdefault(str(value), []).append(row)
            self._postings[name] = rows
        return self._postings[name]

    def matching_rows(self, where: Filter) -> np.ndarray:
        """Returns (n,) bool, True for rows whose item passes a filter.

        Raises:
            InputError: no item has one of the properties.
        """
        mask = np.ones(len(self._items), bool)
        for name, values in where.items():
            postings, has_value = self.postings(name), np.zeros(len(self._items), bool)
            for value in _as_collection(values):
                has_value[postings.get(str(value), [])] = True
            mask &= has_value
        return mask


def check_items(items: Sequence[Item]) -> None:
    """Checks that every item has an "id", and that no two have the same.

    Raises:
        InputError: an id is missing, is not text, or occurs twice.
    """
    ids = [item.get("id") for item in items]
    if not all(isinstance(item_id, str) and item_id for item_id in ids):
        raise InputError('every item of an index needs an "id", a string.')
    check_unique_ids([str(item_id) for item_id in ids])


def check_unique_ids(ids: Sequence[str]) -> None:
    """Checks that no id occurs twice.

    Raises:
        InputError: an id occurs twice.
    """
    (item_id, count), *_ = collections.Counter(ids).most_common(1)
    if count > 1:
        raise InputError(f"the id {item_id!r} occurs {count} times: ids must be unique.")


def _as_collection(value: Any) -> Collection:
    return value if isinstance(value, list | tuple | set) else [value]
