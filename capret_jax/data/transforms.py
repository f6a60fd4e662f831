"""Views of items: a window of the photograph at a fixed size, the items' boxes following along."""

from typing import NamedTuple

import cv2
import numpy as np

from capret_jax.config import AugmentConfig
from capret_jax.data.images import Photograph

# cx, cy, w, h: what a mirror turns round.
_MIRROR = np.array([-1, 1, 1, 1], np.float32)


class View(NamedTuple):
    """A picture of M items, ready for the model.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        boxes: (M, 4) float32 cx, cy, w, h of the items as fractions of the picture.
    """

    image: np.ndarray
    boxes: np.ndarray


def crop_view(photograph: Photograph, box: np.ndarray, size: int, margin: float) -> View:
    """The item's box with a margin, resized to `size` x `size`.

    Args:
        photograph: with the item in it.
        box: (4,) x1, y1, x2, y2 in pixels.
        size: S, pixels.
        margin: context on each side, as a fraction of the box's width and height.
    """
    return _look(photograph, _around(box, np.full(4, margin)), box[None], size)


def whole_view(photograph: Photograph, boxes: np.ndarray, size: int) -> View:
    """The whole photograph with its (M, 4) boxes, resized to `size` x `size`."""
    return _look(photograph, frame(photograph), boxes, size)


def training_crop_view(
    photograph: Photograph,
    box: np.ndarray,
    size: int,
    config: AugmentConfig,
    rng: np.random.Generator,
    may_flip: bool = True,
) -> View:
    """Like `crop_view`, with random margins, mirroring, light and erasing."""
    margins = rng.uniform(-config.shrink, 2 * config.margin, 4)
    view = _look(photograph, _around(box, margins), box[None], size)
    return _augment(view, config, rng, may_flip)


def training_wide_view(
    photograph: Photograph,
    box: np.ndarray,
    size: int,
    config: AugmentConfig,
    rng: np.random.Generator,
    may_flip: bool = True,
) -> View:
    """Like `training_crop_view`, of a random window between the box and the whole photograph."""
    # One draw for all sides, and one for each, so that the extremes are seen often.
    reach = rng.uniform() ** 0.5 * (1 - rng.uniform(0, 0.5, 4) * (rng.uniform() < 0.5))
    window = box + reach * (frame(photograph) - box)
    return _augment(_look(photograph, window, box[None], size), config, rng, may_flip)


def training_whole_view(
    photograph: Photograph,
    boxes: np.ndarray,
    size: int,
    config: AugmentConfig,
    rng: np.random.Generator,
    may_flip: bool = True,
) -> View:
    """Like `whole_view`, with trimmed edges, mirroring, light and erasing."""
    edges = frame(photograph)
    trimmed = edges + rng.uniform(0, config.trim, 4) * np.tile(edges[2:], 2) * (1, 1, -1, -1)
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    window = np.concatenate([np.minimum(trimmed[:2], low), np.maximum(trimmed[2:], high)])
    return _augment(_look(photograph, window, boxes, size), config, rng, may_flip)


def frame(photograph: Photograph) -> np.ndarray:
    """(4,) float64 x1, y1, x2, y2 of the whole photograph."""
    return np.array([0, 0, photograph.width, photograph.height], np.float64)


def margin_window(photograph: Photograph, box: np.ndarray, margin: float) -> np.ndarray:
    """The window of `crop_view`: (4,) int x1, y1, x2, y2 in pixels, inside the photograph."""
    return _inside(photograph, _around(box, np.full(4, margin)))


def _around(box: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """The box with `margins`, fractions of its sides, at left, top, right and bottom."""
    sides = np.tile(box[2:] - box[:2], 2)
    return box + margins * sides * (-1, -1, 1, 1)


def _inside(photograph: Photograph, window: np.ndarray) -> np.ndarray:
    """The window rounded to pixels and cut at the edges.

    At least a pixel wide and inside the image, whatever the annotation says.
    """
    limit = np.array([photograph.width, photograph.height])
    low = np.clip(np.round(window[:2]).astype(int), 0, limit - 1)
    return np.concatenate([low, np.clip(np.round(window[2:]).astype(int), low + 1, limit)])


def _look(photograph: Photograph, window: np.ndarray, boxes: np.ndarray, size: int) -> View:
    """The window and the boxes in it; the window is rounded to pixels and cut at the edges."""
    window = _inside(photograph, window)
    low, high = window[:2], window[2:]
    corners = ((boxes.reshape(-1, 2, 2) - low) / (high - low)).clip(0, 1)
    first, last = corners[:, 0], corners[:, 1]
    inside = np.concatenate([(first + last) / 2, last - first], axis=1).astype(np.float32)
    return View(photograph.crop(window, size), inside)


def _augment(view: View, config: AugmentConfig, rng: np.random.Generator, may_flip: bool) -> View:
    picture, boxes = view
    if rng.random() < config.flip and may_flip:
        picture = cv2.flip(picture, 1)
        boxes = boxes * _MIRROR + (1 - _MIRROR) / 2
    gains = rng.uniform(1 - config.brightness, 1 + config.brightness) * rng.uniform(
        1 - config.colour, 1 + config.colour, 3
    )
    pixels = _light(picture, gains)
    if rng.random() < config.erase:
        _erase(pixels, rng)
    return View(pixels, boxes)


def _light(pixels: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """A copy with each channel multiplied by its gain, rounded and clipped."""
    levels = np.clip(np.outer(np.arange(256), gains) + 0.5, 0, 255).astype(np.uint8)
    return cv2.LUT(pixels, levels[None])


def _erase(pixels: np.ndarray, rng: np.random.Generator) -> None:
    """Paints a rectangle of 2 to 20 % of the area grey, in place."""
    size = len(pixels)
    area, aspect = rng.uniform(0.02, 0.2), np.exp(rng.uniform(-1.0, 1.0))
    height = max(1, min(size, round(size * np.sqrt(area * aspect))))
    width = max(1, min(size, round(size * np.sqrt(area / aspect))))
    top, left = rng.integers(size - height + 1), rng.integers(size - width + 1)
    pixels[top : top + height, left : left + width] = rng.integers(256)
