"""Boxes that users give, in pixels."""

from collections.abc import Sequence

import numpy as np

from capret_jax.errors import InputError


def check_pixels(box: Sequence[float] | np.ndarray, where: str) -> np.ndarray:
    """Checks a box in pixels.

    Args:
        box: x1, y1, x2, y2 in pixels.
        where: origin of the box, for the message.

    Returns:
        (4,) float64.

    Raises:
        InputError: it is no box, or looks like fractions of the picture.
    """
    try:
        edges = np.asarray(box, np.float64)
    except (TypeError, ValueError):
        edges = np.empty(0)
    if edges.shape != (4,) or not np.isfinite(edges).all() or not (edges[:2] < edges[2:]).all():
        raise InputError(f"{where}: the box {box!s} is not x1 < x2, y1 < y2 in pixels.")
    if edges.max() <= 1.0 and edges.min() >= 0.0:
        raise InputError(
            f"{where}: the box {box!s} looks like fractions of the picture: multiply it by the "
            "width and height, since boxes are in pixels."
        )
    return edges
