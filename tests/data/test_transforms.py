"""Crops: the box follows, whatever is done to the picture."""

import io

import numpy as np
import pytest
from PIL import Image

from capret_jax.data.transforms import AugmentConfig, decode, evaluation_view, training_view
from capret_jax.errors import InputError

BOX = np.array([40, 30, 80, 90], np.float32)


@pytest.fixture(scope="module")
def photograph():
    """A green box on black, at `BOX`."""
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[30:90, 40:80, 1] = 255
    return Image.fromarray(pixels)


def painted_box(image):
    """cx, cy, w, h of the green pixels, as fractions."""
    rows, columns = np.nonzero(image[..., 1] > 127)
    y1, y2, x1, x2 = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    return np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]) / len(image)


def test_evaluation_view_has_the_margin_asked_for(photograph):
    view = evaluation_view(photograph, BOX, 96, 0.25)
    np.testing.assert_allclose(view.box, [0.5, 0.5, 1 / 1.5, 1 / 1.5], atol=1e-6)
    np.testing.assert_allclose(painted_box(view.image), view.box, atol=0.02)
    assert view.image.shape == (96, 96, 3) and view.image.dtype == np.uint8


def test_training_box_follows_crop_and_flip(photograph):
    config = AugmentConfig(margin=0.3, shrink=0.0, flip=0.5, brightness=0, colour=0, erase=0)
    for seed in range(30):
        view = training_view(photograph, BOX, 96, config, np.random.default_rng(seed))
        np.testing.assert_allclose(painted_box(view.image), view.box, atol=0.02)


def test_a_flip_mirrors_picture_and_box(photograph):
    plain, flipped = (
        training_view(
            photograph,
            BOX,
            64,
            AugmentConfig(flip=flip, brightness=0, colour=0, erase=0),
            np.random.default_rng(0),
        )
        for flip in (0.0, 1.0)
    )
    np.testing.assert_array_equal(flipped.image, plain.image[:, ::-1])
    np.testing.assert_allclose(flipped.box, plain.box * (-1, 1, 1, 1) + (1, 0, 0, 0), atol=1e-6)


def test_light_scales_the_channels_and_erasing_covers_at_most_a_fifth():
    grey = Image.fromarray(np.full((50, 50, 3), 100, np.uint8))
    box = np.array([5, 5, 45, 45], np.float32)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        config = AugmentConfig(brightness=0.2, colour=0.1, erase=0)
        pixels = training_view(grey, box, 32, config, rng).image
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == 1
        assert pixels.min() >= 100 * 0.8 * 0.9 - 1 and pixels.max() <= 100 * 1.2 * 1.1 + 1
        config = AugmentConfig(brightness=0, colour=0, erase=1.0)
        erased = (training_view(grey, box, 32, config, rng).image != 100).any(axis=-1).mean()
        assert erased <= 0.22


@pytest.mark.parametrize("box", [(-20, -20, 400, 400), (50, 50, 50, 50), (159, 119, 300, 300)])
def test_impossible_boxes_still_give_a_picture(photograph, box):
    view = evaluation_view(photograph, np.array(box, np.float32), 32, 0.1)
    assert np.isfinite(view.box).all() and (view.box >= 0).all() and (view.box <= 1).all()


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_any_jpeg_becomes_rgb(mode):
    buffer = io.BytesIO()
    Image.new(mode, (8, 6)).save(buffer, "JPEG")
    image = decode(buffer.getvalue(), "7")
    assert image.mode == "RGB" and image.size == (8, 6)


def test_the_orientation_tag_is_obeyed():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "JPEG", exif=exif)
    assert decode(buffer.getvalue(), "7").size == (6, 8)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"GIF?" + b[4:]])
def test_a_damaged_image_is_named(damage):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    with pytest.raises(InputError, match="image 42 does not decode"):
        decode(damage(buffer.getvalue()), "42")
