"""Random quadrilaterals of a photograph: crops, rotations and perspective in one homography."""

import cv2
import numpy as np

from capret_jax.config import AugmentConfig

# Corners of the unit square: top left, top right, bottom right, bottom left.
UNIT_SQUARE = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
# Aspects of random crops, as in torchvision's RandomResizedCrop, and how often one is tried.
_ASPECT = 4 / 3
_TRIES = 10


def random_resized_crop(
    width: int, height: int, smallest: float, rng: np.random.Generator
) -> np.ndarray:
    """Draws a window by the rule of torchvision's RandomResizedCrop.

    Its area is a uniform share of the picture's, its aspect between 3/4 and 4/3. If ten such
    windows do not fit, it is the largest one in the middle with an aspect in this range.

    Args:
        width, height: sides of the picture, pixels.
        smallest: smallest share of the area; the largest is 1.
        rng: source of the draws.

    Returns:
        (4,) int64 x1, y1, x2, y2 in pixels.
    """
    limit = np.array([width, height])
    area = rng.uniform(smallest, 1.0, _TRIES) * width * height
    aspect = np.exp(rng.uniform(-np.log(_ASPECT), np.log(_ASPECT), _TRIES))
    sides = np.round(np.sqrt(np.stack([area * aspect, area / aspect], axis=1))).astype(int)
    fitting = ((sides > 0) & (sides <= limit)).all(axis=1)
    if fitting.any():
        kept = sides[np.argmax(fitting)]
        low = rng.integers(0, limit - kept, endpoint=True)
    else:
        kept = np.minimum(limit, np.maximum(np.round(_ASPECT * limit[::-1]).astype(int), 1))
        low = (limit - kept) // 2
    return np.concatenate([low, low + kept])


def random_window_around(
    box: np.ndarray, width: int, height: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws a window that contains a box, each edge uniformly between the box's and the picture's.

    Args:
        box: (4,) x1, y1, x2, y2 in pixels.
        width, height: sides of the picture, pixels.
        rng: source of the draws.

    Returns:
        (4,) int64 x1, y1, x2, y2 in pixels, inside the picture.
    """
    limit = np.array([width, height])
    low = np.clip(np.floor(box[:2]).astype(int), 0, limit - 1)
    high = np.clip(np.ceil(box[2:]).astype(int), low + 1, limit)
    return np.concatenate(
        [rng.integers(0, low, endpoint=True), rng.integers(high, limit, endpoint=True)]
    )


def random_scaled_window(
    width: int, height: int, scale: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Draws the window in which a picture is seen at a random scale.

    Args:
        width, height: sides of the picture, pixels.
        scale: smallest and largest scale. Above 1 the window is a random part of the picture; below
            1 the picture is at a random place of the window.
        rng: source of the draws.

    Returns:
        (4,) float64 x1, y1, x2, y2 in pixels of the picture.
    """
    sides = np.array([width, height])
    share = 1 / rng.uniform(*scale)
    low = rng.uniform(size=2) * (1 - share) * sides
    return np.concatenate([low, low + share * sides])


def shares_inside(boxes: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Returns the (M,) shares in [0, 1] of boxes' areas that are inside a window.

    Args:
        boxes: (M, 4) x1, y1, x2, y2 in pixels, of positive area.
        window: (4,) x1, y1, x2, y2 in pixels.
    """
    low, high = np.maximum(boxes[:, :2], window[:2]), np.minimum(boxes[:, 2:], window[2:])
    inside = np.prod(np.maximum(high - low, 0), axis=1)
    return inside / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def random_quadrilateral(
    window: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """Draws the part of a window that a view shows.

    A random crop (Inception, arXiv 1409.4842) is turned about its centre, and its corners move.

    Args:
        window: (4,) x1, y1, x2, y2 in pixels.
        config: ranges of the crop's area, rotation and perspective.
        rng: source of the draws.

    Returns:
        (4, 2) float64 x, y in pixels: the corners that become the view's top left, top right,
        bottom right and bottom left. They may lie outside of the photograph.
    """
    centre, sides = (window[:2] + window[2:]) / 2, window[2:] - window[:2]
    aspect = np.exp(rng.uniform(-np.log(_ASPECT), np.log(_ASPECT))) if config.crop_area < 1 else 1.0
    area = rng.uniform(config.crop_area, 1.0)
    kept = np.minimum(np.sqrt([area * aspect, area / aspect]), 1.0)
    centre = centre + (1 - kept) * rng.uniform(-0.5, 0.5, 2) * sides
    corners = UNIT_SQUARE - 0.5 + rng.uniform(-0.5, 0.5, (4, 2)) * config.perspective
    angle = np.radians(rng.uniform(-config.rotate, config.rotate))
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return centre + corners * kept * sides @ rotation


def map_boxes(boxes: np.ndarray, quadrilateral: np.ndarray) -> np.ndarray:
    """Maps boxes of a photograph into the view of a quadrilateral.

    Args:
        boxes: (M, 4) x1, y1, x2, y2 in pixels.
        quadrilateral: (4, 2) corners in pixels, from `random_quadrilateral`.

    Returns:
        (M, 4) float32 cx, cy, w, h as fractions of the view: the upright hull of each box's mapped
        corners, cut at the view's edges.
    """
    to_view = cv2.getPerspectiveTransform(
        quadrilateral.astype(np.float32), UNIT_SQUARE.astype(np.float32)
    )
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).astype(np.float64)
    mapped = cv2.perspectiveTransform(corners, to_view).clip(0, 1)
    low, high = mapped.min(axis=1), mapped.max(axis=1)
    return np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32)
