"""The items of a dataset as those who look at them see them."""

from collections.abc import Sequence

import numpy as np

from capret_jax.captioning.store import Key
from capret_jax.datasets import Dataset


class ItemCrops:
    """The crop of an item, by its key.

    Attributes:
        dataset: `DataConfig.name`.
    """

    def __init__(self, dataset: Dataset, name: str, size: int, margin: float):
        """
        Args:
            dataset: both splits.
            name: `DataConfig.name`.
            size: S, pixels.
            margin: around the box, as a fraction of its sides.
        """
        self.dataset = name
        self._splits = {"train": dataset.train, "validation": dataset.validation}
        self._size, self._margin = size, margin
        self._rows = {
            Key(name, int(split.items["image_id"][row]), int(split.items["number"][row])): row
            for name, split in self._splits.items()
            for row in range(len(split.items))
        }

    def keys(self, splits: Sequence[str]) -> list[Key]:
        """Of all items of some splits."""
        return [key for split in splits for key in self._rows if key.split == split]

    def __contains__(self, key: Key) -> bool:
        return key in self._rows

    def attributes_of(self, key: Key) -> dict[str, int]:
        """What is known of an item."""
        return self._splits[key.split].items.attributes_of(self._rows[key])

    def __call__(self, key: Key) -> np.ndarray:
        """(S, S, 3) uint8."""
        split = self._splits[key.split]
        return split.crop_view(self._rows[key], self._size, self._margin).image
