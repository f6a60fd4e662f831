"""Decoding and resizing of JPEG files, compared with Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from capret_jax.data.images import Photograph
from capret_jax.errors import InputError


def encode(pixels, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def smooth(height, width, seed=0):
    """Makes a picture with structure at every scale down to a few pixels."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            ),
            np.float32,
        )
        for side in (3, 10, 40)
    ]
    return (layers[0] * 0.6 + layers[1] * 0.3 + layers[2] * 0.1).astype(np.uint8)


def error_db(actual, expected):
    squared = (actual.astype(float) - expected.astype(float)) ** 2
    return 10 * np.log10(255**2 / squared.mean())


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_pixels_are_those_of_pillow(mode, options):
    jpeg = encode(smooth(50, 70), mode, **options)
    photograph = Photograph(jpeg, "7")
    expected = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    assert photograph.pixels().shape == (photograph.height, photograph.width, 3) == (50, 70, 3)
    assert np.abs(photograph.pixels().astype(int) - expected).max() <= 2


def test_a_png_is_read_too():
    buffer = io.BytesIO()
    Image.fromarray(smooth(8, 6)).save(buffer, "PNG")
    np.testing.assert_array_equal(Photograph(buffer.getvalue(), "7").pixels(), smooth(8, 6))


def test_the_orientation_tag_is_obeyed():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    jpeg = encode(smooth(64, 48), exif=exif)
    photograph = Photograph(jpeg, "7")
    assert (photograph.height, photograph.width) == (48, 64)
    upright = np.rot90(np.asarray(Image.open(io.BytesIO(jpeg))), -1)
    np.testing.assert_array_equal(photograph.pixels(), upright)
    assert photograph.crop(np.array([0, 0, 64, 48]), 16).shape == (16, 16, 3)


# Enlarged, shrunk a little and more, averaged, decoded at half and at a quarter of the size.
@pytest.mark.parametrize(
    "side, size", [(60, 64), (90, 64), (150, 64), (420, 64), (200, 22), (420, 24)]
)
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_crops_are_close_to_those_of_pillow(side, size, mode):
    jpeg = encode(smooth(450, 431), mode)
    window = np.array([7, 9, 7 + side, 9 + side - 20])
    expected = (
        Image.open(io.BytesIO(jpeg))
        .convert("RGB")
        .resize((size, size), Image.Resampling.BICUBIC, box=tuple(window))
    )
    crop = Photograph(jpeg, "7").crop(window, size)
    assert crop.shape == (size, size, 3) and crop.dtype == np.uint8
    assert error_db(crop, np.asarray(expected)) > 42


def test_crops_do_not_depend_on_earlier_crops():
    jpeg = encode(smooth(300, 300))
    photograph = Photograph(jpeg, "7")
    whole, part = np.array([0, 0, 300, 300]), np.array([10, 10, 80, 80])
    for window in (whole, part, whole):
        fresh = Photograph(jpeg, "7").crop(window, 16)
        np.testing.assert_array_equal(photograph.crop(window, 16), fresh)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"GIF?" + b[4:]])
def test_a_damaged_image_is_named(damage):
    jpeg = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    with pytest.raises(InputError, match="image 42 does not decode"):
        Photograph(damage(jpeg), "42").pixels()


def test_bytes_after_the_picture_are_ignored():
    jpeg = encode(smooth(50, 70))
    np.testing.assert_array_equal(
        Photograph(jpeg + b"\0" * 99, "7").pixels(), Photograph(jpeg, "7").pixels()
    )
