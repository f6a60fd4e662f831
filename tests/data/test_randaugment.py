"""RandAugment: each operation against Pillow, boxes that follow, and the draws."""

import collections

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from capret_jax.config import AugmentConfig
from capret_jax.data import randaugment as module
from capret_jax.data.randaugment import randaugment
from capret_jax.errors import InputError

SIZE = 64
BOX = np.array([[0.4, 0.6, 0.3, 0.2]], np.float32)


@pytest.fixture(scope="module")
def pixels():
    """A smooth picture that does not use all levels."""
    x, y = np.meshgrid(np.linspace(0, 1, SIZE), np.linspace(0, 1, SIZE))
    noise = np.random.default_rng(0).normal(0, 6, (SIZE, SIZE, 3))
    channels = np.stack([60 + 90 * x, 80 + 60 * y, 200 - 100 * x * y], axis=2)
    return np.clip(channels + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "name, pillow, strength",
    [
        ("identity", lambda image: image, 0.7),
        ("autocontrast", ImageOps.autocontrast, 0.7),
        ("equalise", ImageOps.equalize, 0.7),
        ("brightness", lambda image: ImageEnhance.Brightness(image).enhance(1.36), 0.7),
        ("brightness", lambda image: ImageEnhance.Brightness(image).enhance(0.1), 0.0),
        ("sharpness", lambda image: ImageEnhance.Sharpness(image).enhance(1.36), 0.7),
        ("sharpness", lambda image: ImageEnhance.Sharpness(image).enhance(0.46), 0.2),
    ],
)
def test_changes_of_light_equal_pillows(pixels, name, pillow, strength):
    ours = module._PHOTOMETRIC[name](pixels, strength)
    theirs = np.asarray(pillow(Image.fromarray(pixels)))
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert (name == "identity") == np.array_equal(ours, pixels)


def test_a_constant_picture_stays(pixels):
    flat = np.full_like(pixels, 77)
    for name in ("autocontrast", "equalise", "sharpness"):
        np.testing.assert_array_equal(module._PHOTOMETRIC[name](flat, 0.7), flat)


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
@pytest.mark.parametrize("strength", [-1.0, 0.7])
def test_boxes_follow_pixels(name, strength):
    """A bright rectangle is where its box says."""
    picture = np.zeros((SIZE * 4, SIZE * 4, 3), np.uint8)
    cx, cy, w, h = BOX[0] * len(picture)
    picture[round(cy - h / 2) : round(cy + h / 2), round(cx - w / 2) : round(cx + w / 2)] = 255
    matrix, offset = module._GEOMETRIC[name](strength)
    corners = (module.UNIT_SQUARE - 0.5) @ matrix.T + 0.5 + offset
    moved, boxes = module._show(picture, BOX, corners)
    assert not np.array_equal(boxes, BOX)
    rows, columns = (np.flatnonzero(moved[..., 0].max(axis=axis) > 127) for axis in (1, 0))
    found = [
        (columns[0] + columns[-1] + 1) / 2,
        (rows[0] + rows[-1] + 1) / 2,
        columns[-1] + 1 - columns[0],
        rows[-1] + 1 - rows[0],
    ]
    np.testing.assert_allclose(boxes[0] * len(picture), found, atol=2)


def test_half_of_two_draws_are_applied(pixels, monkeypatch):
    """All operations are drawn equally often; two of them are applied in a quarter of views."""
    applied = []
    for table in (module._PHOTOMETRIC, module._GEOMETRIC):
        for name, function in list(table.items()):

            def recorded(*arguments, name=name, function=function):
                applied.append(name)
                return function(*arguments)

            monkeypatch.setitem(table, name, recorded)
    rng, numbers = np.random.default_rng(0), []
    for _ in range(1500):
        before = len(applied)
        randaugment(pixels[:8, :8], BOX, 2, 7, rng)
        numbers.append(len(applied) - before)
    counts = collections.Counter(applied)
    assert len(counts) == 10 and max(counts.values()) < 1.5 * min(counts.values())
    assert np.mean(numbers) == pytest.approx(1.0, abs=0.06)
    assert np.mean(np.array(numbers) == 2) == pytest.approx(0.25, abs=0.04)


def test_without_geometric_operations_boxes_stay(pixels):
    rng = np.random.default_rng(0)
    for _ in range(40):
        _, boxes = randaugment(pixels, BOX, 3, 10, rng, geometric=False)
        np.testing.assert_array_equal(boxes, BOX)


@pytest.mark.parametrize("name, value", [("randaugment", -1), ("randaugment_level", 11)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(InputError, match=f"data.augment.{name}={value} is not in"):
        AugmentConfig(**{name: value})
