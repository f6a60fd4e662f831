"""RandAugment (arXiv 1909.13719) with the operations and strengths that X2-VLM trains with."""

from collections.abc import Callable

import cv2
import numpy as np

from capret_jax.data.geometry import UNIT_SQUARE, map_boxes

# Largest magnitude; strengths below are those at this magnitude.
LEVELS = 10
_SHEAR, _ROTATION = 0.3, np.radians(30)
# 10 of 224 pixels, X2-VLM's size in pre-training.
_TRANSLATION = 10 / 224
# Each operation that is drawn is applied with this probability.
_PROBABILITY = 0.5
# Pillow's SMOOTH filter, from which sharpness moves away.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def randaugment(
    pixels: np.ndarray,
    boxes: np.ndarray,
    operations: int,
    level: int,
    rng: np.random.Generator,
    *,
    geometric: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Applies random operations to a view.

    Args:
        pixels: (S, S, 3) uint8 RGB.
        boxes: (M, 4) float32 cx, cy, w, h as fractions of the view.
        operations: number of operations to draw, with replacement.
        level: magnitude, 0 to `LEVELS`.
        rng: source of the draws.
        geometric: False to draw none that move pixels, as X2-VLM does for boxes and regions.

    Returns:
        (S, S, 3) uint8, and (M, 4) float32 boxes, which follow geometric operations.
    """
    choices = [*_PHOTOMETRIC, *(_GEOMETRIC if geometric else ())]
    for name in rng.choice(choices, operations):
        sign = rng.choice((-1.0, 1.0))
        if rng.random() >= _PROBABILITY:
            continue
        if name in _PHOTOMETRIC:
            pixels = _PHOTOMETRIC[name](pixels, level / LEVELS)
        else:
            matrix, offset = _GEOMETRIC[name](sign * level / LEVELS)
            pixels, boxes = _show(pixels, boxes, (UNIT_SQUARE - 0.5) @ matrix.T + 0.5 + offset)
    return pixels, boxes


def _show(
    pixels: np.ndarray, boxes: np.ndarray, corners: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shows a parallelogram of a view, reflected beyond its edges.

    Args:
        pixels: (S, S, 3) uint8.
        boxes: (M, 4) float32 cx, cy, w, h as fractions.
        corners: (4, 2) x, y of the parallelogram as fractions, from the top left one clockwise.
    """
    size = len(pixels)
    # OpenCV counts from the centre of the first pixel.
    source, target = corners[:3] * size - 0.5, UNIT_SQUARE[:3] * size - 0.5
    matrix = cv2.getAffineTransform(source.astype(np.float32), target.astype(np.float32))
    moved = cv2.warpAffine(
        pixels, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    half = boxes[:, 2:] / 2
    return moved, map_boxes(
        np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1), corners
    )


def _identity(pixels: np.ndarray, strength: float) -> np.ndarray:
    del strength
    return pixels


def _autocontrast(pixels: np.ndarray, strength: float) -> np.ndarray:
    """Stretches each channel to 0 ... 255."""
    del strength
    low, high = pixels.min(axis=(0, 1)).astype(float), pixels.max(axis=(0, 1)).astype(float)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1.0)
    low = np.where(high > low, low, 0.0)
    levels = np.clip((np.arange(256)[:, None] - low) * scale, 0, 255)
    return cv2.LUT(pixels, levels.astype(np.uint8)[None])


def _equalise(pixels: np.ndarray, strength: float) -> np.ndarray:
    """Makes the histogram of each channel even, by Pillow's rule."""
    del strength
    return cv2.LUT(pixels, np.stack([_equal_levels(pixels, c) for c in range(3)], axis=1)[None])


def _equal_levels(pixels: np.ndarray, channel: int) -> np.ndarray:
    histogram = cv2.calcHist([pixels], [channel], None, [256], [0, 256]).astype(np.int64).ravel()
    step = (histogram.sum() - histogram[np.flatnonzero(histogram)[-1]]) // 255
    if step == 0:
        return np.arange(256, dtype=np.uint8)
    before = np.concatenate([[0], np.cumsum(histogram)[:-1]])
    return np.minimum((step // 2 + before) // step, 255).astype(np.uint8)


def _factor(strength: float) -> float:
    """Factor of brightness and sharpness, 0.1 to 1.9."""
    return 1.8 * strength + 0.1


def _brightness(pixels: np.ndarray, strength: float) -> np.ndarray:
    return cv2.convertScaleAbs(pixels, alpha=_factor(strength))


def _sharpness(pixels: np.ndarray, strength: float) -> np.ndarray:
    """Moves away from the smoothed view, or towards it; edges stay, as in Pillow."""
    factor = _factor(strength)
    smooth = cv2.filter2D(pixels, -1, _SMOOTH)
    result = cv2.addWeighted(pixels, factor, smooth, 1 - factor, 0)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        result[edge] = pixels[edge]
    return result


def _shear(x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    return np.array([[1, x], [y, 1]]), np.zeros(2)


def _rotation(angle: float) -> tuple[np.ndarray, np.ndarray]:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]]), np.zeros(2)


_PHOTOMETRIC: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "identity": _identity,
    "autocontrast": _autocontrast,
    "equalise": _equalise,
    "brightness": _brightness,
    "sharpness": _sharpness,
}
# Signed strength -> map of the view's corners about its centre, and their offset.
_GEOMETRIC: dict[str, Callable[[float], tuple[np.ndarray, np.ndarray]]] = {
    "shear_x": lambda strength: _shear(_SHEAR * strength, 0),
    "shear_y": lambda strength: _shear(0, _SHEAR * strength),
    "translate_x": lambda strength: (np.eye(2), np.array([_TRANSLATION * strength, 0])),
    "translate_y": lambda strength: (np.eye(2), np.array([0, _TRANSLATION * strength])),
    "rotate": lambda strength: _rotation(_ROTATION * strength),
}
