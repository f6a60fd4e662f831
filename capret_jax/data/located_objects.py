"""Training pictures for the loss of writing where objects are: whole photographs, all items."""

import numpy as np

from capret_jax.config import LocationBatchConfig
from capret_jax.data.batch import LocatedObjects
from capret_jax.data.geometry import random_scaled_window, shares_inside
from capret_jax.data.images import Photograph
from capret_jax.data.sampler import Draw
from capret_jax.data.split import Split
from capret_jax.data.transforms import Augmentation, View

# Share of an object's box that a view must show to keep the object.
_MIN_INSIDE = 0.5


class LocatedExamples:
    """A function from draws to pictures at a random scale, with their objects."""

    def __init__(self, split: Split, augment: Augmentation, config: LocationBatchConfig, most: int):
        """
        Args:
            split: the photographs and items.
            augment: random changes of light and colour, and flips.
            config: range of scales.
            most: N, objects of a picture; of more, the largest are kept.
        """
        self._split, self._augment, self._scale, self._most = split, augment, config.scale, most

    def __call__(self, draw: Draw) -> LocatedObjects:
        rng, items = np.random.default_rng(draw.seed), self._split.items
        photograph, rows = self._split.photograph(draw.row), items.rows_with(draw.row)
        view, kept = scaled_view(photograph, items.box[rows], self._augment, self._scale, rng)
        return pad_objects(view, items["category_id"][rows][kept], self._most)


def scaled_view(
    photograph: Photograph,
    boxes: np.ndarray,
    augment: Augmentation,
    scale: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[View, np.ndarray]:
    """Makes a view of a photograph at a random scale.

    Args:
        photograph: the photograph.
        boxes: (m, 4) x1, y1, x2, y2 of its objects in pixels.
        augment: random changes of light and colour, and flips.
        scale: smallest and largest scale.
        rng: source of the changes.

    Returns:
        The view with the boxes of the k objects of which it shows more than half, and their (k,)
        places in `boxes`.
    """
    window = random_scaled_window(photograph.width, photograph.height, scale, rng)
    kept = np.flatnonzero(shares_inside(boxes, window) > _MIN_INSIDE)
    return augment.window_view(photograph, boxes[kept], rng, window=window), kept


def pad_objects(view: View, categories: np.ndarray, most: int) -> LocatedObjects:
    """Returns the objects of a view as those of one picture, padded to `most`.

    Args:
        view: the picture, with k boxes.
        categories: (k,) int class of each from 1.
        most: N; of more objects, the N largest are kept.
    """
    largest = np.argsort(-view.boxes[:, 2:].prod(axis=1), kind="stable")[:most]
    box, category = np.zeros((1, most, 4), np.float32), np.zeros((1, most), np.int32)
    box[0, : len(largest)] = view.boxes[largest]
    category[0, : len(largest)] = categories[largest]
    return LocatedObjects(box, category, view.image[None])
