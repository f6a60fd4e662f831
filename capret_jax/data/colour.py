"""Random changes of colour, as one affine map of RGB."""

import cv2
import numpy as np

from capret_jax.config import AugmentConfig

# ITU-R BT.601, as in Pillow's conversion to grey.
LUMA = np.array([0.299, 0.587, 0.114])
# RGB -> YIQ (NTSC, 1953): a turn of the plane of I and Q changes the hue and keeps the luma.
_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def change_colours(
    pixels: np.ndarray, gains: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """Changes contrast, saturation and hue, and multiplies each channel by its gain.

    Args:
        pixels: (S, S, 3) uint8 RGB.
        gains: (3,) factors of the channels.
        config: ranges of contrast, saturation and hue, and the probability of grey.
        rng: source of the draws.

    Returns:
        (S, S, 3) uint8, a copy.
    """
    saturation = rng.uniform(1 - config.saturation, 1 + config.saturation)
    if rng.random() < config.grey:
        saturation = 0.0
    contrast = rng.uniform(1 - config.contrast, 1 + config.contrast)
    hue = rng.uniform(-config.hue, config.hue)
    linear = colour_matrix(saturation, hue)
    # Contrast moves colours towards the picture's mean luma, as Pillow's ImageEnhance does.
    offset = (1 - contrast) * LUMA @ np.array(cv2.mean(pixels)[:3])
    affine = np.concatenate([contrast * linear, np.full((3, 1), offset)], axis=1)
    return cv2.transform(pixels, gains[:, None] * affine)


def colour_matrix(saturation: float, hue: float) -> np.ndarray:
    """Returns the (3, 3) map of RGB that scales the distance to grey and turns the hue.

    Args:
        saturation: 0 for grey, 1 for no change.
        hue: turn of the hue as a fraction of the circle.
    """
    cosine, sine = np.cos(2 * np.pi * hue), np.sin(2 * np.pi * hue)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    turned = np.linalg.solve(_YIQ, turn @ _YIQ)
    return saturation * turned + (1 - saturation) * np.tile(LUMA, (3, 1))


def blur(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blurs with a Gaussian of 0.1 to 2 pixels of a 224-pixel view (SimCLR, arXiv 2002.05709)."""
    sigma = rng.uniform(0.1, 2.0) * len(pixels) / 224
    return cv2.GaussianBlur(pixels, (0, 0), max(sigma, 0.01))
