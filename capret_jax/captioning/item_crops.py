"""Crops of a dataset's items, the inputs of the captioning models."""

from collections.abc import Sequence

import numpy as np

from capret_jax.captioning.store import ItemKey
from capret_jax.datasets import Dataset


class ItemCrops:
    """Crops and annotations of a dataset's items, by their keys.

    Attributes:
        dataset: `DataConfig.name`.
    """

    def __init__(self, dataset: Dataset, name: str, size: int, margin: float):
        """
        Args:
            dataset: the two splits.
            name: `DataConfig.name`.
            size: S, side of a crop, pixels.
            margin: context around the box, as a fraction of its sides.
        """
        self.dataset = name
        self._splits = {"train": dataset.train, "validation": dataset.validation}
        self._size, self._margin = size, margin
        self._rows = {
            ItemKey(name, int(split.items["image_id"][row]), int(split.items["number"][row])): row
            for name, split in self._splits.items()
            for row in range(len(split.items))
        }

    def keys(self, splits: Sequence[str]) -> list[ItemKey]:
        """Returns the keys of all items of some splits."""
        return [key for split in splits for key in self._rows if key.split == split]

    def __contains__(self, key: ItemKey) -> bool:
        """Returns True for the key of an item of the dataset."""
        return key in self._rows

    def attributes_of(self, key: ItemKey) -> dict[str, int]:
        """Returns the annotations of an item, see `ItemTable.attributes_of`."""
        return self._splits[key.split].items.attributes_of(self._rows[key])

    def __call__(self, key: ItemKey) -> np.ndarray:
        """Reads the crop of an item, (S, S, 3) uint8."""
        split = self._splits[key.split]
        return split.crop_view(self._rows[key], self._size, self._margin).image
