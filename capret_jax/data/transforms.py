"""From JPEG bytes to a fixed-size crop around an item, its box following along."""

import dataclasses
import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from capret_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Training-time changes; all fractions. Zeros everywhere make training views plain.

    Attributes:
        margin: context around the box at evaluation, as a fraction of the box's sides; training
            draws each side's between -shrink and 2 * margin.
        shrink: how far into the box a training crop may cut.
        flip: probability of a mirror image.
        brightness: each image's gain is drawn from 1 +- this.
        colour: each channel's gain is drawn from 1 +- this.
        erase: probability that a rectangle is painted grey (arXiv 1708.04896).
    """

    margin: float = 0.1
    shrink: float = 0.05
    flip: float = 0.5
    brightness: float = 0.2
    colour: float = 0.05
    erase: float = 0.25


class View(NamedTuple):
    """A picture of one item, ready for the model.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        box: (4,) float32 cx, cy, w, h of the item as fractions of the picture.
    """

    image: np.ndarray
    box: np.ndarray


def decode(jpeg: bytes, name: str) -> Image.Image:
    """An upright RGB image.

    Args:
        jpeg: the file's bytes.
        name: of the image, for the error.

    Raises:
        InputError: the bytes do not decode.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(jpeg)))
        return image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"image {name} does not decode ({error}): remove it from the dataset and prepare again."
        ) from error


def evaluation_view(image: Image.Image, box: np.ndarray, size: int, margin: float) -> View:
    """The item's box with a margin, resized to `size` x `size`.

    Args:
        image: the photograph.
        box: (4,) x1, y1, x2, y2 in pixels.
        size: S, pixels.
        margin: context on each side, as a fraction of the box's width and height.
    """
    picture, target = _crop(image, box, (margin,) * 4, size)
    return View(np.asarray(picture), target)


def training_view(
    image: Image.Image,
    box: np.ndarray,
    size: int,
    config: AugmentConfig,
    rng: np.random.Generator,
) -> View:
    """Like `evaluation_view`, with random margins, mirroring, light and erasing."""
    picture, target = _crop(image, box, rng.uniform(-config.shrink, 2 * config.margin, 4), size)
    if rng.random() < config.flip:
        picture = ImageOps.mirror(picture)
        target[0] = 1 - target[0]
    gains = rng.uniform(1 - config.brightness, 1 + config.brightness) * rng.uniform(
        1 - config.colour, 1 + config.colour, 3
    )
    # A lookup table per channel: a quarter of the time of multiplying and clipping every pixel.
    levels = np.clip(np.outer(gains, np.arange(256)) + 0.5, 0, 255).astype(np.uint8)
    pixels = levels[np.arange(3), np.asarray(picture)]
    if rng.random() < config.erase:
        _erase(pixels, rng)
    return View(pixels, target)


def _crop(image, box, margins, size):
    """The box with `margins`, fractions of its sides at left, top, right and bottom, resized."""
    x1, y1, x2, y2 = (float(edge) for edge in box)
    width, height = x2 - x1, y2 - y1
    left, top, right, bottom = (float(margin) for margin in margins)
    # At least a pixel wide and inside the image, whatever the annotation says.
    left = min(max(x1 - left * width, 0.0), image.width - 1.0)
    top = min(max(y1 - top * height, 0.0), image.height - 1.0)
    right = min(max(x2 + right * width, left + 1.0), image.width)
    bottom = min(max(y2 + bottom * height, top + 1.0), image.height)
    picture = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    x1, x2 = (min(max((x - left) / (right - left), 0.0), 1.0) for x in (x1, x2))
    y1, y2 = (min(max((y - top) / (bottom - top), 0.0), 1.0) for y in (y1, y2))
    return picture, np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], np.float32)


def _erase(pixels, rng):
    """Paints a rectangle of 2 to 20 % of the area grey, in place."""
    size = len(pixels)
    area, aspect = rng.uniform(0.02, 0.2), np.exp(rng.uniform(-1.0, 1.0))
    height = max(1, min(size, round(size * np.sqrt(area * aspect))))
    width = max(1, min(size, round(size * np.sqrt(area / aspect))))
    top, left = rng.integers(size - height + 1), rng.integers(size - width + 1)
    pixels[top : top + height, left : left + width] = rng.integers(256)
