"""Uploads that anybody may send: checked before they are decoded, and made small and upright."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from capret_jax.data.images import Photograph
from capret_jax.errors import InputError

# More pixels than phones and most cameras have; decoded, they take 190 MB.
MAX_PIXELS = 64_000_000
_WHITE = (255, 255, 255)
# Pillow knows others, of which some start programs, or hide a picture in a picture.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def read_photo(
    data: bytes, longest_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Photograph:
    """A JPEG, PNG, WebP, GIF, BMP or TIFF file as an upright RGB photograph.

    Transparent parts become white. Of an animation the first frame is taken.

    Args:
        data: the file.
        longest_side: pixels that the photograph may have along one; larger ones are shrunk.
        max_pixels: larger pictures are refused by their header, before anything is decoded.

    Raises:
        InputError: it is empty, no picture, too large, or does not decode.
    """
    if not data:
        raise InputError("the photo is empty.")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InputError(
                    f"the photo has {width} x {height} pixels, more than "
                    f"{max_pixels / 1e6:.0f} million: make it smaller."
                )
            if longest_side:
                # JPEGs are decoded at a fraction of their size where that is enough.
                image.draft("RGB", (longest_side, longest_side))
                image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
            return as_photograph(image)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"the photo is no picture that can be read: {', '.join(_FORMATS)} are."
        ) from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers do
        raise InputError(f"the photo is no picture that can be read ({error}).") from error


def as_photograph(image: Image.Image) -> Photograph:
    """A Pillow image, upright and without transparency."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow would cut 16 bits off at 255.
        image = Image.fromarray((np.asarray(image, np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer)
    return Photograph.from_pixels(np.asarray(image.convert("RGB")))


def jpeg(pixels: np.ndarray, side: int) -> bytes:
    """(H, W, 3) uint8 -> a JPEG file that fits into a square."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
