"""Boxes: between a window and its photograph, and which of several mean the same thing."""

import numpy as np


def from_window(boxes: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Boxes predicted in a window, in pixels of the photograph.

    Args:
        boxes: (..., 4) cx, cy, w, h as fractions of the window.
        window: (..., 4) x1, y1, x2, y2 in pixels.

    Returns:
        (..., 4) float64 x1, y1, x2, y2 in pixels, inside the window and at least a pixel wide.
    """
    centre, sides = boxes[..., :2].astype(np.float64), boxes[..., 2:].astype(np.float64)
    low, extent = window[..., :2], window[..., 2:] - window[..., :2]
    first = low + np.clip(centre - sides / 2, 0, 1) * extent
    last = low + np.clip(centre + sides / 2, 0, 1) * extent
    first = np.minimum(first, low + extent - 1)
    return np.concatenate([first, np.maximum(last, first + 1)], axis=-1)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, 4) and (B, 4) boxes x1, y1, x2, y2 -> (A, B) intersection over union; 0 if both empty."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    sides = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner, 0, None)
    shared = sides.prod(axis=2)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(axis=1) for x in (a, b)]
    union = areas[0][:, None] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """Greedy non-maximum suppression, across categories: a garment has one.

    Args:
        boxes: (n, 4) x1, y1, x2, y2.
        scores: (n,).
        overlap: IoU from which the less certain of two boxes goes.

    Returns:
        Positions of those that stay, the most certain first.
    """
    overlaps = box_iou(boxes, boxes) >= overlap
    kept: list[int] = []
    for position in np.argsort(-scores, kind="stable"):
        if not overlaps[position, kept].any():
            kept.append(int(position))
    return kept
