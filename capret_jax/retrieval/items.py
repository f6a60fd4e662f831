"""Items of an index, and the inverted index that filters them by their properties."""

import collections
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from capret_jax.errors import InputError

# Values of a property that a message lists.
_VALUES_SHOWN = 10
# Properties of an item by name: its "id", and any others, such as "category" and "shop".
Item = dict[str, Any]
# The value, or a collection of alternative values, that an item must have, by property.
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

        A value is looked up as text, and otherwise by its meaning: 19.9 finds "19.90", and True
        finds "true".

        Raises:
            InputError: no item has one of the properties, or the value of one; or a value is
                neither text, number nor truth value.
        """
        mask = np.ones(len(self._items), bool)
        for name, values in where.items():
            has_value = np.zeros(len(self._items), bool)
            for value in _as_collection(values):
                has_value[self._rows_with(name, value)] = True
            mask &= has_value
        return mask

    def _rows_with(self, name: str, value: Any) -> list[int]:
        """Returns the rows of the items that have a value, not necessarily ascending."""
        postings = self.postings(name)
        if isinstance(value, np.generic):
            value = value.item()
        if not isinstance(value, str | int | float) or value != value:
            raise InputError(
                f"{name}={str(value)[:80]!a} is no value to filter by: give text, a number, true "
                "or false, or a list of these."
            )
        if str(value) in postings:
            return postings[str(value)]
        meaning = _meaning(value)
        alike = [rows for known, rows in postings.items() if _meaning(known) == meaning]
        rows = [row for group in alike for row in group]
        if not rows:
            raise InputError(
                f"no item has {name}={str(value)[:80]!a}; there are {_some(sorted(postings))}."
            )
        return rows


def _meaning(value: str | float) -> str | float | bool:
    """Returns a number or a truth value, whether it is given as such or as text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower()
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


def _some(values: Sequence[str]) -> str:
    """Lists the first values, and how many others there are."""
    shown = ", ".join(value[:40] for value in values[:_VALUES_SHOWN])
    rest = len(values) - _VALUES_SHOWN
    return f"{shown} and {rest} others" if rest > 0 else shown


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
    if isinstance(value, np.ndarray):
        return value.reshape(-1).tolist()
    single = isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection)
    return [value] if single else value
