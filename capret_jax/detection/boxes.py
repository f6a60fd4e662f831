"""Box geometry: window coordinates, intersection over union, and non-maximum suppression."""

import numpy as np


def from_window(boxes: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Converts boxes relative to a window into pixels of its photograph.

    Args:
        boxes: (..., 4) cx, cy, w, h as fractions of the window.
        window: (..., 4) x1, y1, x2, y2 in pixels.

    Returns:
        (..., 4) float64 x1, y1, x2, y2 in pixels, clipped to the window and at least a pixel wide
        and high.
    """
    centre, sides = boxes[..., :2].astype(np.float64), boxes[..., 2:].astype(np.float64)
    low, extent = window[..., :2], window[..., 2:] - window[..., :2]
    first = low + np.clip(centre - sides / 2, 0, 1) * extent
    last = low + np.clip(centre + sides / 2, 0, 1) * extent
    first = np.minimum(first, low + extent - 1)
    return np.concatenate([first, np.maximum(last, first + 1)], axis=-1)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the intersection over union of all pairs of boxes.

    Args:
        a: (A, 4) x1, y1, x2, y2.
        b: (B, 4) x1, y1, x2, y2.

    Returns:
        (A, B) IoU; 0 where both boxes are empty.
    """
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    sides = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner, 0, None)
    shared = sides.prod(axis=2)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(axis=1) for x in (a, b)]
    union = areas[0][:, None] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def non_max_suppression(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """Selects boxes by greedy non-maximum suppression.

    Args:
        boxes: (n, 4) x1, y1, x2, y2.
        scores: (n,) confidences.
        overlap: IoU from which the lower-scored of two boxes is removed.

    Returns:
        Positions of the boxes kept, highest score first.
    """
    overlaps = box_iou(boxes, boxes) >= overlap
    kept: list[int] = []
    for position in np.argsort(-scores, kind="stable"):
        if not overlaps[position, kept].any():
            kept.append(int(position))
    return kept
