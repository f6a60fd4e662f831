"""Resizing of views against Pillow's, on two photographs and on closed forms."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from capret_jax.config import ReadConfig
from capret_jax.data.images import Photograph
from capret_jax.data.resizing import antialias, resize
from capret_jax.errors import InputError
from tests.data.test_images import encode, error_db, smooth

PHOTOGRAPHS = ("china.jpg", "flower.jpg")


def by_pillow(pixels, size):
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("shrink", [1.05, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 6])
def test_fast_views_of_photographs_are_close_to_pillows(name, shrink):
    side, size = 420, round(420 / shrink)
    pixels = load_sample_image(name)[3 : 3 + side, 101 : 101 + side]
    assert error_db(resize(pixels, size, "fast"), by_pillow(pixels, size)) > 42


@pytest.mark.parametrize("window", [(420, 120), (90, 300), (60, 70)])
def test_sides_may_shrink_by_different_factors_or_grow(window):
    width, height = window
    pixels = load_sample_image("china.jpg")[:height, :width]
    assert error_db(resize(pixels, 100, "fast"), by_pillow(pixels, 100)) > 40


def test_equal_sides_change_nothing():
    pixels = load_sample_image("china.jpg")[:64, :64]
    np.testing.assert_array_equal(resize(pixels, 64, "fast"), pixels)


@pytest.mark.parametrize("size", [7, 20, 33, 71, 150])
@pytest.mark.parametrize("value", [0, 97, 255])
def test_one_colour_stays_what_it_is(size, value):
    pixels = np.full((100, 83, 3), value, np.uint8)
    assert (resize(pixels, size, "fast") == value).all()


def test_a_point_becomes_pillows_kernel():
    """At a shrink of 3 the view's pixels lie on pixels of the source, 3 apart."""
    pixels = np.zeros((63, 63, 3), np.uint8)
    pixels[:, 31] = 255
    x = np.abs(np.arange(-4, 5)) / 3
    keys = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2) / 3
    smooth_pixels = antialias(pixels, np.array([3.0, 1.0]))
    positive = np.maximum(255 * keys, 0)
    assert np.abs(smooth_pixels[10, 27:36, 0] - positive).max() < 3


def test_details_are_kept_where_nothing_shrinks():
    pixels = load_sample_image("china.jpg")[:50, :60]
    assert antialias(pixels, np.array([1.0, 0.4])) is pixels
    assert antialias(pixels, np.array([9.0, 2.0])).shape == (50, 15, 3)


@pytest.mark.parametrize(
    "jpeg",
    [
        *(encode(smooth(90, 71), mode) for mode in ("RGB", "L", "CMYK")),
        *(encode(smooth(90, 71), subsampling=kind) for kind in ("4:4:4", "4:2:2", "4:2:0")),
        encode(smooth(90, 71), progressive=True),
    ],
)
@pytest.mark.parametrize("size", [8, 33, 64, 128])
def test_pillows_views_are_its_own_bit_for_bit(jpeg, size):
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    photograph = Photograph(jpeg, "7", "pillow")
    for box in ((0, 0, 71, 90), (5, 11, 52, 61)):
        expected = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
        actual = photograph.crop(np.array(box), size)
        np.testing.assert_array_equal(actual, np.asarray(expected))
        assert actual.flags.writeable


def test_a_photograph_may_be_resized_another_way():
    jpeg = encode(smooth(90, 71))
    fast, box = Photograph(jpeg, "7"), np.array([0, 0, 71, 90])
    exact = fast.resized_by("pillow")
    assert exact.resized_by("pillow") is exact and fast.resize == "fast"
    expected = Photograph(jpeg, "7", "pillow").crop(box, 32)
    np.testing.assert_array_equal(exact.crop(box, 32), expected)
    assert (fast.crop(box, 32) != expected).any()
    decoded = Photograph.from_pixels(exact.pixels()).resized_by("pillow")
    np.testing.assert_array_equal(decoded.crop(box, 32), expected)


def test_an_unknown_way_is_refused():
    with pytest.raises(InputError, match="data.read.resize='lanczos' is none of fast, pillow"):
        ReadConfig(resize="lanczos")
