"""The photographs and items of a split, and the views of them at evaluation."""

import functools

import numpy as np

from capret_jax.config import DataConfig
from capret_jax.data.images import Photograph
from capret_jax.data.items import ItemTable
from capret_jax.data.records import Records
from capret_jax.data.transforms import View, crop_view, whole_view


class Split:
    """Records of the photographs of a split, and the table of their items."""

    def __init__(
        self, records: Records, items: ItemTable, cached_images: int = 0, resize: str = "fast"
    ):
        """
        Args:
            records: records of the photographs.
            items: table of their items, from `read_items`.
            cached_images: number of photographs to keep in memory.
            resize: how views are resized, one of `config.data.RESIZES`.
        """
        self.records = records
        self.items = items
        self._cached_images, self._resize = cached_images, resize
        self._cached = functools.lru_cache(maxsize=cached_images)(self._read)

    def __reduce__(self) -> tuple:
        return Split, (self.records, self.items, self._cached_images, self._resize)

    def _read(self, record: int, name: str) -> Photograph:
        return Photograph(self.records.image(record), name, self._resize)

    def photograph(self, row: int) -> Photograph:
        """Reads the photograph of the item in a row of the table."""
        return self._cached(int(self.items.record[row]), str(self.items["image_id"][row]))

    def crop_view(self, row: int, size: int, margin: float) -> View:
        """Returns the crop of the item in a row of the table.

        Args:
            row: row of the item.
            size: S, side of the crop in pixels.
            margin: margin on each side as a fraction of the box.
        """
        return crop_view(self.photograph(row), self.items.box[row], size, margin)


def evaluation_view(
    photograph: Photograph, boxes: np.ndarray, size: int, config: DataConfig
) -> View:
    """Returns the view of items that the model gets at evaluation.

    Args:
        photograph: the photograph of the items.
        boxes: (M, 4) boxes x1, y1, x2, y2 of the items in pixels; M is 1 where views are crops.
        size: S, side of the view in pixels.
        config: kind of view, and margin of crops.
    """
    if config.view.whole:
        return whole_view(photograph, boxes, size)
    return crop_view(photograph, boxes[0], size, config.augment.margin)
