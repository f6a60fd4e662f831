"""Resizing with Pillow's bicubic filter: by Pillow itself, or close to it and faster by OpenCV.

Pillow widens the cubic kernel (Keys 1981, a = -0.5) by the shrink, so that it covers all pixels of
the source, and evaluates it at each pixel of the result. OpenCV interpolates between four pixels
alone. `antialias` therefore evaluates the widened kernel at each pixel of the source, and OpenCV
interpolates between the smooth pixels; docs/performance.md has how close that is.
"""

import functools
import math

import cv2
import numpy as np
from PIL import Image

# Grain runs the threads; OpenCV's own would compete with them.
cv2.setNumThreads(1)
# From this shrink on blocks of pixels are averaged first, so that kernels stay short.
_AVERAGED = 4
# Part of a kernel's half, in shrinks, that is evaluated.
_REACH = 1.2


def resize(pixels: np.ndarray, size: int, method: str) -> np.ndarray:
    """Resizes a picture to a square.

    Args:
        pixels: (h, w, 3) uint8.
        size: S, pixels.
        method: "pillow", exactly Pillow's bicubic, or "fast", close to it by OpenCV; see
            `config.data.RESIZES`.

    Returns:
        (S, S, 3) uint8.
    """
    if method == "pillow":
        return np.array(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    smooth = antialias(pixels, np.array(pixels.shape[1::-1]) / size)
    return cv2.resize(smooth, (size, size), interpolation=cv2.INTER_CUBIC)


def antialias(pixels: np.ndarray, shrink: np.ndarray) -> np.ndarray:
    """Removes the details that a smaller picture cannot show.

    Args:
        pixels: (h, w, 3) uint8.
        shrink: (2,) factors by which width and height will be reduced; of factors up to 1 nothing
            is removed.

    Returns:
        (h, w, 3) uint8, or less high and wide if a factor is 4 or more: at least twice what the
        factor leaves.
    """
    sides = np.array(pixels.shape[1::-1])
    blocks = np.where(shrink < _AVERAGED, 1, shrink // 2).astype(int)
    if (blocks > 1).any():
        reduced = np.maximum(sides // blocks, 1)
        pixels = cv2.resize(pixels, reduced.tolist(), interpolation=cv2.INTER_AREA)
        shrink = shrink * reduced / sides
    across, down = (_kernel(float(factor)) for factor in shrink)
    if len(across) == len(down) == 1:
        return pixels
    return cv2.sepFilter2D(pixels, -1, across, down, borderType=cv2.BORDER_REPLICATE)


@functools.lru_cache(4096)
def _kernel(shrink: float) -> np.ndarray:
    """Returns the weights of Pillow's bicubic kernel at whole pixels, (2k + 1,) float32.

    The kernel reaches over 2 shrinks to each side. Its flat end is added to the last weights, which
    saves a third of the time.
    """
    if shrink <= 1:
        return np.ones(1, np.float32)
    far = math.ceil(2 * shrink) - 1
    near = min(round(_REACH * shrink), far)
    x = np.arange(far + 1) / shrink
    inner, outer = (1.5 * x - 2.5) * x**2 + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = np.where(x < 1, inner, outer)
    weights[near] += weights[near + 1 :].sum()
    weights = np.concatenate([weights[near:0:-1], weights[: near + 1]])
    return (weights / weights.sum()).astype(np.float32)
