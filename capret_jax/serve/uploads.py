"""Decodes untrusted image files: checks them first, then shrinks and turns them upright."""

import io

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from capret_jax.data.images import Photograph, check_scans
from capret_jax.errors import InputError

# Above the resolution of phones and most cameras; decoded, 64 million pixels take 190 MB.
MAX_PIXELS = 64_000_000
_WHITE = (255, 255, 255)
# Largest value of a range -> factor that makes 8 bits of it.
_SCALES = {1: 255.0, 255: 1.0, 65535: 1 / 256}
_SRGB = ImageCms.createProfile("sRGB")
# Pillow reads other formats too; some of them start external programs or embed other images.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def read_photo(
    data: bytes, longest_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Photograph:
    """Decodes a JPEG, PNG, WebP, GIF, BMP or TIFF file to an upright RGB photograph.

    Transparent parts become white. The first frame of an animation is used.

    Args:
        data: content of the file.
        longest_side: larger photographs are shrunk to this length, in pixels; never when None.
        max_pixels: larger images are rejected by their header, before they are decoded.

    Raises:
        InputError: the file is empty, not an image, too large, damaged, or takes too long.
    """
    if not data:
        raise InputError("the photo is empty.")
    check_scans(data)
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
            return photograph_from_pil(image)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"the photo is no picture that can be read: {', '.join(_FORMATS)} are supported."
        ) from error
    except Exception as error:  # Pillow's plugins raise exceptions of many types
        raise InputError(f"the photo is no picture that can be read ({error}).") from error


def photograph_from_pil(image: Image.Image) -> Photograph:
    """Converts a Pillow image to a photograph: upright, opaque, sRGB of 8 bits.

    Raises:
        InputError: its pixels have values of an unknown range.
    """
    image = _to_srgb(_to_8_bits(ImageOps.exif_transpose(image)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer)
    return Photograph.from_pixels(np.asarray(image.convert("RGB")))


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales grey values of 16 bits, 32 bits or floating point, which Pillow would clip at 255."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    smallest = {"F": 1, "I": 255}.get(image.mode, 65535)
    scales = [scale for limit, scale in _SCALES.items() if limit >= max(smallest, high)]
    if not low >= 0 or not scales:
        raise InputError(f"the photo has values from {low:g} to {high:g}: save it with 8 bits.")
    return Image.fromarray((values * scales[0]).astype(np.uint8))


def _to_srgb(image: Image.Image) -> Image.Image:
    """Converts the colours of an image with an ICC profile; a broken profile is ignored."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return image
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return image
    return image if converted is None else converted


def encode_thumbnail(pixels: np.ndarray, side: int) -> bytes:
    """Encodes (H, W, 3) uint8 pixels as a JPEG file that fits into side x side pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
