"""Accuracy of boxes, as RefCOCO+'s tables define it."""

import numpy as np

# Least overlap of a box that counts as found.
MIN_IOU = 0.5


def inclusive_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the intersection over union of pairs of boxes, with REFER's inclusive pixels.

    A box covers the pixels from x to x + w - 1, both included; the side of an intersection is
    counted as its last pixel - its first + 1, and the area of a box is w * h.

    Args:
        a, b: (n, 4) x, y, w, h in pixels.

    Returns:
        (n,) float64; 0 for pairs that do not meet.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    first = np.maximum(a[:, :2], b[:, :2])
    last = np.minimum(a[:, :2] + a[:, 2:] - 1, b[:, :2] + b[:, 2:] - 1)
    meet = (first < last).all(axis=1)
    intersection = np.where(meet, (last - first + 1).prod(axis=1), 0.0)
    union = a[:, 2:].prod(axis=1) + b[:, 2:].prod(axis=1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def box_accuracy(predicted: np.ndarray, annotated: np.ndarray) -> float:
    """Computes the share of predicted boxes with an `inclusive_iou` of at least `MIN_IOU`.

    Args:
        predicted, annotated: (n, 4) x, y, w, h in pixels; a predicted NaN is not found.
    """
    return float((inclusive_iou(predicted, annotated) >= MIN_IOU).mean())
