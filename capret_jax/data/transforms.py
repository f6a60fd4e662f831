"""Views of items: windows of a photograph resized to a fixed size, with the items' boxes."""

import dataclasses
from typing import NamedTuple

import cv2
import numpy as np

from capret_jax.config import AugmentConfig
from capret_jax.data.colour import blur, change_colours
from capret_jax.data.geometry import map_boxes, random_quadrilateral, random_resized_crop
from capret_jax.data.images import Photograph
from capret_jax.data.randaugment import randaugment

# Level of what is beyond the edges of a photograph.
_GREY = 127
# Signs of cx, cy, w, h under a horizontal flip.
_FLIP_SIGNS = np.array([-1, 1, 1, 1], np.float32)


class View(NamedTuple):
    """A picture of M items, ready for the model.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        boxes: (M, 4) float32 cx, cy, w, h of the items as fractions of the picture.
    """

    image: np.ndarray
    boxes: np.ndarray


def crop_view(photograph: Photograph, box: np.ndarray, size: int, margin: float) -> View:
    """Crops the item's box with a margin and resizes it to S x S.

    Args:
        photograph: the photograph of the item.
        box: (4,) x1, y1, x2, y2 in pixels.
        size: S, pixels.
        margin: context on each side, as a fraction of the box's width and height.
    """
    return _cut(photograph, _around(box, np.full(4, margin)), box[None], size)


def whole_view(photograph: Photograph, boxes: np.ndarray, size: int) -> View:
    """Resizes the whole photograph to S x S.

    Args:
        photograph: the photograph of the items.
        boxes: (M, 4) x1, y1, x2, y2 in pixels.
        size: S, pixels.
    """
    return _cut(photograph, frame(photograph), boxes, size)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random views for training.

    Attributes:
        config: ranges of the random changes.
        size: S, pixels.
    """

    config: AugmentConfig
    size: int

    def crop_view(
        self,
        photograph: Photograph,
        box: np.ndarray,
        rng: np.random.Generator,
        *,
        may_flip: bool = True,
    ) -> View:
        """Makes a `crop_view` with random margins, flip, light and erasing.

        Args:
            photograph: the photograph of the item.
            box: (4,) x1, y1, x2, y2 in pixels.
            rng: source of the random changes.
            may_flip: False to never flip horizontally.
        """
        margins = rng.uniform(-self.config.shrink, max(2 * self.config.margin, 0.0), 4)
        view = self._show(photograph, _around(box, margins), box, rng)
        return self._change(view, rng, may_flip, geometric=True)

    def wide_view(
        self,
        photograph: Photograph,
        box: np.ndarray,
        rng: np.random.Generator,
        *,
        may_flip: bool = True,
    ) -> View:
        """Makes a view of a random window between the box and the whole photograph.

        Args:
            photograph, box, rng, may_flip: as for `crop_view`.
        """
        # One draw for all sides, and one for each side, so that the extremes are frequent.
        reach = rng.uniform() ** 0.5 * (1 - rng.uniform(0, 0.5, 4) * (rng.uniform() < 0.5))
        window = box + reach * (frame(photograph) - box)
        return self._change(self._show(photograph, window, box, rng), rng, may_flip)

    def _show(
        self, photograph: Photograph, window: np.ndarray, box: np.ndarray, rng: np.random.Generator
    ) -> View:
        """Shows a window, or a random quadrilateral of it."""
        if not self.config.geometric:
            return _cut(photograph, window, box[None], self.size)
        window = _inside(photograph, window).astype(np.float64)
        corners = random_quadrilateral(window, self.config, rng)
        if not self.config.tilts:
            return _cut(photograph, corners[[0, 2]].reshape(4), box[None], self.size)
        return View(photograph.warp(corners, self.size), map_boxes(box[None], corners))

    def whole_view(
        self,
        photograph: Photograph,
        boxes: np.ndarray,
        rng: np.random.Generator,
        *,
        may_flip: bool = True,
        geometric: bool = False,
    ) -> View:
        """Makes a `whole_view` with trimmed edges, random flip, light and erasing.

        Args:
            photograph, rng, may_flip: as for `crop_view`.
            boxes: (M, 4) x1, y1, x2, y2 in pixels; none of them is trimmed.
            geometric: True for operations of RandAugment that move pixels.
        """
        edges, trim = frame(photograph), rng.uniform(0, self.config.trim, 4)
        trimmed = edges + trim * np.tile(edges[2:], 2) * (1, 1, -1, -1)
        low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        window = np.concatenate([np.minimum(trimmed[:2], low), np.maximum(trimmed[2:], high)])
        return self._change(_cut(photograph, window, boxes, self.size), rng, may_flip, geometric)

    def image_view(
        self,
        photograph: Photograph,
        boxes: np.ndarray,
        rng: np.random.Generator,
        *,
        may_flip: bool = True,
    ) -> View:
        """Makes a view of a photograph by its caption: a random crop, or the `whole_view`.

        Args:
            photograph, rng, may_flip: as for `crop_view`.
            boxes: (M, 4) x1, y1, x2, y2 in pixels; a crop may cut them away.
        """
        config = self.config
        if not config.geometric:
            return self.whole_view(photograph, boxes, rng, may_flip=may_flip, geometric=True)
        window = frame(photograph)
        if config.crop_area < 1:
            window = random_resized_crop(
                photograph.width, photograph.height, config.crop_area, rng
            ).astype(np.float64)
        if config.rotate or config.perspective:
            turned = dataclasses.replace(config, crop_area=1.0)
            corners = random_quadrilateral(window, turned, rng)
            view = View(photograph.warp(corners, self.size), map_boxes(boxes, corners))
        else:
            view = _cut(photograph, window, boxes, self.size)
        return self._change(view, rng, may_flip, geometric=True)

    def window_view(
        self,
        photograph: Photograph,
        boxes: np.ndarray,
        rng: np.random.Generator,
        *,
        window: np.ndarray,
        may_flip: bool = True,
    ) -> View:
        """Makes a view of a window with random flip, light and erasing.

        Args:
            photograph, rng, may_flip: as for `crop_view`.
            boxes: (M, 4) x1, y1, x2, y2 in pixels, cut at the window's edges.
            window: (4,) x1, y1, x2, y2 in pixels: a part of the photograph, or all of it in a
                larger window of its shape, which is grey around it.
        """
        edges = frame(photograph)
        if (window[2:] - window[:2] > edges[2:]).all():
            view = _placed(photograph, window, boxes, self.size)
        else:
            view = _cut(photograph, window, boxes, self.size)
        return self._change(view, rng, may_flip)

    def _change(
        self, view: View, rng: np.random.Generator, may_flip: bool, geometric: bool = False
    ) -> View:
        """Applies random flip, changes of light and colour, RandAugment, blur and erasing."""
        image, boxes = view
        config = self.config
        if rng.random() < config.flip and may_flip:
            image = cv2.flip(image, 1)
            boxes = boxes * _FLIP_SIGNS + (1 - _FLIP_SIGNS) / 2
        gains = rng.uniform(1 - config.brightness, 1 + config.brightness) * rng.uniform(
            1 - config.colour, 1 + config.colour, 3
        )
        if config.photometric:
            pixels = change_colours(image, gains, config, rng)
        else:
            pixels = _light(image, gains)
        if config.randaugment:
            operations, level = config.randaugment, config.randaugment_level
            pixels, boxes = randaugment(pixels, boxes, operations, level, rng, geometric=geometric)
        if config.blur and rng.random() < config.blur:
            pixels = blur(pixels, rng)
        if rng.random() < config.erase:
            _erase(pixels, config.erase_area, rng)
        return View(pixels, boxes)


def frame(photograph: Photograph) -> np.ndarray:
    """Returns the window of the whole photograph: (4,) float64 x1, y1, x2, y2 in pixels."""
    return np.array([0, 0, photograph.width, photograph.height], np.float64)


def margin_window(photograph: Photograph, box: np.ndarray, margin: float) -> np.ndarray:
    """Returns the window of `crop_view`: (4,) int x1, y1, x2, y2 in pixels, inside the photo."""
    return _inside(photograph, _around(box, np.full(4, margin)))


def _around(box: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Widens a box by `margins`, fractions of its sides, at left, top, right and bottom."""
    sides = np.tile(box[2:] - box[:2], 2)
    return box + margins * sides * (-1, -1, 1, 1)


def _inside(photograph: Photograph, window: np.ndarray) -> np.ndarray:
    """Rounds a window to pixels and cuts it at the edges.

    The result is at least a pixel wide and high and inside the image, for any annotation.
    """
    limit = np.array([photograph.width, photograph.height])
    low = np.clip(np.round(window[:2]).astype(int), 0, limit - 1)
    return np.concatenate([low, np.clip(np.round(window[2:]).astype(int), low + 1, limit)])


def _cut(photograph: Photograph, window: np.ndarray, boxes: np.ndarray, size: int) -> View:
    """Resizes a window, rounded to pixels and cut at the edges, and maps the boxes into it."""
    window = _inside(photograph, window)
    return View(photograph.crop(window, size), _boxes_in(window, boxes))


def _boxes_in(window: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Maps (M, 4) boxes in pixels into a window: cx, cy, w, h as fractions, cut at its edges."""
    low, high = window[:2], window[2:]
    corners = ((boxes.reshape(-1, 2, 2) - low) / (high - low)).clip(0, 1)
    first, last = corners[:, 0], corners[:, 1]
    return np.concatenate([(first + last) / 2, last - first], axis=1).astype(np.float32)


def _placed(photograph: Photograph, window: np.ndarray, boxes: np.ndarray, size: int) -> View:
    """Shows the whole photograph at its place in a larger window."""
    edges = frame(photograph)
    scale = edges[2:] / (window[2:] - window[:2])
    side = max(1, round(size * scale.min()))
    left, top = np.round(-window[:2] / edges[2:] * side).astype(int).clip(0, size - side)
    image = np.full((size, size, 3), _GREY, np.uint8)
    image[top : top + side, left : left + side] = photograph.crop(edges.astype(int), side)
    inner = _boxes_in(edges, boxes)
    centre = (inner[:, :2] * side + (left, top)) / size
    sides = inner[:, 2:] * side / size
    return View(image, np.concatenate([centre, sides], axis=1).astype(np.float32))


def _light(pixels: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Multiplies each channel by its gain, rounded and clipped; returns a copy."""
    return cv2.transform(pixels, np.diag(gains).astype(np.float32))


def _erase(pixels: np.ndarray, largest: float, rng: np.random.Generator) -> None:
    """Paints a rectangle of 2 % to `largest` of the area grey, in place."""
    size = len(pixels)
    area, aspect = rng.uniform(0.02, largest), np.exp(rng.uniform(-1.0, 1.0))
    height = max(1, min(size, round(size * np.sqrt(area * aspect))))
    width = max(1, min(size, round(size * np.sqrt(area / aspect))))
    top, left = rng.integers(size - height + 1), rng.integers(size - width + 1)
    pixels[top : top + height, left : left + width] = rng.integers(256)
