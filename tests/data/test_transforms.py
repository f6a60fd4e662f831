"""Views: the boxes follow crops, trimming and flips; random changes stay in their ranges."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_image

from capret_jax.config import AugmentConfig
from capret_jax.data.colour import LUMA, blur, change_colours, colour_matrix
from capret_jax.data.geometry import map_boxes
from capret_jax.data.images import Photograph
from capret_jax.data.transforms import Augmentation, crop_view, whole_view
from capret_jax.errors import InputError
from tests.data.test_images import error_db

BOX = np.array([40, 30, 80, 90], np.float32)


@pytest.fixture(scope="module")
def photograph():
    """A green box on black, at `BOX`."""
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[30:90, 40:80, 1] = 255
    return stored(pixels)


def stored(pixels):
    """A photograph with (nearly) these pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=100, subsampling=0)
    return Photograph(buffer.getvalue(), "7")


def painted_box(image):
    """cx, cy, w, h of the green pixels, as fractions."""
    rows, columns = np.nonzero(image[..., 1] > 127)
    y1, y2, x1, x2 = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    return np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]) / len(image)


def test_a_crop_has_the_given_margin(photograph):
    view = crop_view(photograph, BOX, 96, 0.25)
    np.testing.assert_allclose(view.boxes[0], [0.5, 0.5, 1 / 1.5, 1 / 1.5], atol=1e-6)
    np.testing.assert_allclose(painted_box(view.image), view.boxes[0], atol=0.02)
    assert view.image.shape == (96, 96, 3) and view.image.dtype == np.uint8


def test_training_box_follows_crop_and_flip(photograph):
    config = AugmentConfig(margin=0.3, shrink=0.0, flip=0.5, brightness=0, colour=0, erase=0)
    augment = Augmentation(config, 96)
    for seed in range(30):
        view = augment.crop_view(photograph, BOX, np.random.default_rng(seed))
        np.testing.assert_allclose(painted_box(view.image), view.boxes[0], atol=0.02)


def test_wide_views_hold_the_box_and_range_up_to_the_whole(photograph):
    augment = Augmentation(AugmentConfig(flip=0.5, brightness=0, colour=0, erase=0), 96)
    shares = []
    for seed in range(60):
        view = augment.wide_view(photograph, BOX, np.random.default_rng(seed))
        np.testing.assert_allclose(painted_box(view.image), view.boxes[0], atol=0.03)
        shares.append(view.boxes[0, 2:].prod())
    whole = np.prod(BOX[2:] - BOX[:2]) / (160 * 120)
    assert min(shares) < 1.3 * whole and max(shares) > 0.7
    assert min(shares) >= whole - 1e-6


def test_a_flip_mirrors_picture_and_box(photograph):
    plain, flipped = (
        Augmentation(AugmentConfig(flip=flip, brightness=0, colour=0, erase=0), 64).crop_view(
            photograph, BOX, np.random.default_rng(0)
        )
        for flip in (0.0, 1.0)
    )
    np.testing.assert_array_equal(flipped.image, plain.image[:, ::-1])
    np.testing.assert_allclose(flipped.boxes, plain.boxes * (-1, 1, 1, 1) + (1, 0, 0, 0), atol=1e-6)


def test_light_scales_the_channels_and_erasing_covers_at_most_a_fifth():
    grey = stored(np.full((50, 50, 3), 100, np.uint8))
    box = np.array([5, 5, 45, 45], np.float32)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        augment = Augmentation(AugmentConfig(brightness=0.2, colour=0.1, erase=0), 32)
        pixels = augment.crop_view(grey, box, rng).image
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == 1
        assert pixels.min() >= 100 * 0.8 * 0.9 - 1 and pixels.max() <= 100 * 1.2 * 1.1 + 1
        augment = Augmentation(AugmentConfig(brightness=0, colour=0, erase=1.0), 32)
        erased = (augment.crop_view(grey, box, rng).image != 100).any(axis=-1).mean()
        assert erased <= 0.22


@pytest.mark.parametrize("box", [(-20, -20, 400, 400), (50, 50, 50, 50), (159, 119, 300, 300)])
def test_impossible_boxes_still_give_a_picture(photograph, box):
    view = crop_view(photograph, np.array(box, np.float32), 32, 0.1)
    assert np.isfinite(view.boxes).all() and (view.boxes >= 0).all() and (view.boxes <= 1).all()


def test_a_whole_view_maps_all_boxes(photograph):
    boxes = np.array([[0, 0, 160, 120], BOX], np.float32)
    view = whole_view(photograph, boxes, 96)
    np.testing.assert_allclose(view.boxes[0], [0.5, 0.5, 1, 1])
    np.testing.assert_allclose(view.boxes[1], [60 / 160, 0.5, 0.25, 0.5])
    np.testing.assert_allclose(painted_box(view.image), view.boxes[1], atol=0.02)


def test_training_trims_the_whole_view_but_never_a_box(photograph):
    boxes = np.array([BOX, [0, 60, 50, 119]], np.float32)
    config = AugmentConfig(trim=0.4, flip=0.5, brightness=0, colour=0, erase=0)
    augment = Augmentation(config, 96)
    areas = []
    for seed in range(30):
        view = augment.whole_view(photograph, boxes, np.random.default_rng(seed))
        np.testing.assert_allclose(painted_box(view.image), view.boxes[0], atol=0.02)
        width, height = view.boxes[1, 2:]
        # The sides of the view in pixels of the photograph; the second box lies inside it.
        sides = 50 / width, 59 / height
        assert sides[0] >= 79 and sides[1] >= 88
        areas.append(sides[0] * sides[1] / (160 * 120))
    assert min(areas) < 0.8 and max(areas) > 0.85


@pytest.mark.parametrize("kind", ["crop_view", "wide_view", "whole_view"])
def test_may_flip_forbids_flips(photograph, kind):
    augment = Augmentation(AugmentConfig(flip=1.0, brightness=0, colour=0, erase=0), 64)
    boxes = BOX[None] if kind == "whole_view" else BOX
    flipped, plain = (
        getattr(augment, kind)(photograph, boxes, np.random.default_rng(0), may_flip=may_flip)
        for may_flip in (True, False)
    )
    np.testing.assert_array_equal(flipped.image, plain.image[:, ::-1])


@pytest.mark.parametrize(
    "kind, box, colour",
    [
        ("crop_view", (0.56666666, 0.46268657, 0.86666667, 0.89552242), (15.77, 179.71, 16.44)),
        ("wide_view", (0.55223882, 0.47945204, 0.59701490, 0.82191783), (0.0, 104.11, 0.49)),
        ("whole_view", (0.59589040, 0.51818180, 0.27397260, 0.54545456), (15.77, 41.53, 15.88)),
    ],
)
def test_random_draws_are_those_of_earlier_versions(photograph, kind, box, colour):
    # Another order of the draws would change every run that is resumed.
    boxes = BOX[None] if kind == "whole_view" else BOX
    view = getattr(Augmentation(AugmentConfig(), 64), kind)(
        photograph, boxes, np.random.default_rng(3)
    )
    np.testing.assert_allclose(view.boxes[0], box, atol=1e-6)
    np.testing.assert_allclose(view.image.mean(axis=(0, 1)), colour, atol=0.5)


GEOMETRY = {"crop_area": 0.6, "rotate": 30.0, "perspective": 0.3}
PLAIN = {"flip": 0.5, "brightness": 0, "colour": 0, "erase": 0}


@pytest.mark.parametrize("name", GEOMETRY)
def test_boxes_follow_every_geometric_change(photograph, name):
    augment = Augmentation(
        AugmentConfig(margin=0.3, shrink=0, **PLAIN, **{name: GEOMETRY[name]}), 96
    )
    views = [augment.crop_view(photograph, BOX, np.random.default_rng(seed)) for seed in range(20)]
    for view in views:
        np.testing.assert_allclose(painted_box(view.image), view.boxes[0], atol=0.03)
    assert np.ptp([view.boxes[0] for view in views], axis=0).min() > 0.05


def test_the_whole_quadrilateral_is_a_plain_resize():
    """A window without rotation is what `crop` returns, at any decoding factor."""
    smooth = cv2.GaussianBlur(np.random.default_rng(0).random((600, 800, 3)), (0, 0), 20)
    smooth = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    photograph, window = stored(smooth), np.array([100, 50, 700, 590])
    corners = np.array([[100, 50], [700, 50], [700, 590], [100, 590]], np.float64)
    for size in (32, 64, 96, 400):
        difference = photograph.warp(corners, size).astype(int) - photograph.crop(window, size)
        assert np.abs(difference).mean() < 3, size  # a shift by one pixel gives 10 or more


@pytest.mark.parametrize("shrink", [1.5, 2, 3, 5])
def test_warped_views_are_smoothed_like_others(shrink):
    """Bilinear interpolation alone gives 20 to 36 dB."""
    photograph = Photograph.from_pixels(load_sample_image("china.jpg"))
    window, size = np.array([101, 3, 521, 423]), round(420 / shrink)
    x1, y1, x2, y2 = window
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)
    exact = photograph.resized_by("pillow").crop(window, size)
    assert error_db(photograph.warp(corners, size), exact) > 41
    turned = photograph.warp(np.roll(corners, -1, axis=0), size)
    assert error_db(np.rot90(turned, -1), exact) > 41


def test_crops_without_rotation_are_resized_windows(photograph, monkeypatch):
    def crop(name):
        augment = Augmentation(AugmentConfig(**PLAIN, **{name: GEOMETRY[name]}), 32)
        return augment.crop_view(photograph, BOX, np.random.default_rng(0))

    monkeypatch.setattr(Photograph, "warp", None)
    assert crop("crop_area").image.shape == (32, 32, 3)
    with pytest.raises(TypeError):
        crop("rotate")


def test_a_quarter_turn_moves_corners(photograph):
    corners = np.array([[0, 120], [0, 0], [160, 0], [160, 120]], np.float64)
    turned = photograph.warp(corners, 64)
    box = map_boxes(BOX[None], corners)[0]
    np.testing.assert_allclose(painted_box(turned), box, atol=0.02)
    np.testing.assert_allclose(box, [0.5, 0.375, 0.5, 0.25], atol=1e-6)


def test_colours_equal_pillows_one_after_the_other():
    rng = np.random.default_rng(3)
    pixels = rng.integers(60, 180, (16, 16, 3), np.uint8)  # no value is clipped
    config = AugmentConfig(contrast=0.3, saturation=0.4)
    ours = change_colours(pixels, np.ones(3), config, np.random.default_rng(5))
    draws = np.random.default_rng(5)
    saturation, _, contrast = draws.uniform(0.6, 1.4), draws.random(), draws.uniform(0.7, 1.3)
    image = ImageEnhance.Color(Image.fromarray(pixels)).enhance(saturation)
    theirs = np.asarray(ImageEnhance.Contrast(image).enhance(contrast)).astype(int)
    assert np.abs(ours.astype(int) - theirs).max() <= 3  # Pillow rounds the mean and in between


def test_grey_has_no_colour_and_keeps_the_luma():
    pixels = np.random.default_rng(3).integers(0, 256, (16, 16, 3), np.uint8)
    grey = change_colours(pixels, np.ones(3), AugmentConfig(grey=1.0), np.random.default_rng(0))
    assert (grey == grey[..., :1]).all()
    np.testing.assert_allclose(grey[..., 0], pixels @ LUMA, atol=0.6)


def test_the_hue_turns_in_a_circle():
    np.testing.assert_allclose(colour_matrix(1.0, 0.0), np.eye(3), atol=1e-6)
    third = colour_matrix(1.0, 1 / 3)
    np.testing.assert_allclose(third @ third @ third, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(LUMA @ third, LUMA, atol=1e-6)
    assert np.argmax(third @ [1, 0, 0]) != 0


def test_a_blurred_view_has_less_contrast_and_the_same_mean():
    pixels = np.random.default_rng(3).integers(0, 256, (96, 96, 3), np.uint8)
    blurred = [blur(pixels, np.random.default_rng(seed)) for seed in range(5)]
    assert min(view.std() for view in blurred) < 0.9 * pixels.std()
    np.testing.assert_allclose([view.mean() for view in blurred], pixels.mean(), atol=1)


def test_randaugment_moves_crops_alone(photograph):
    """Boxes of wide and whole views stay where they are without it; those of crops follow."""
    for seed in range(30):
        views = []
        for operations in (0, 3):
            config = AugmentConfig(erase=0.0, randaugment=operations, randaugment_level=10)
            augment = Augmentation(config, 64)
            rngs = (np.random.default_rng(seed) for _ in range(3))
            views.append(
                [
                    augment.wide_view(photograph, BOX, next(rngs)),
                    augment.whole_view(photograph, BOX[None], next(rngs)),
                    augment.crop_view(photograph, BOX, next(rngs)),
                ]
            )
        for without, with_operations in zip(views[0][:2], views[1][:2], strict=True):
            np.testing.assert_array_equal(without.boxes, with_operations.boxes)
        crop = views[1][2]
        if crop.image[..., 1].max() > 127:  # brightness of a tenth hides it
            inside = painted_box(crop.image)
            np.testing.assert_allclose(crop.boxes[0], inside, atol=0.06)


def test_a_negative_margin_cuts_the_box_in_training_too(photograph):
    config = AugmentConfig(margin=-0.1, shrink=0.2, **PLAIN)
    np.testing.assert_allclose(crop_view(photograph, BOX, 96, -0.1).boxes[0], [0.5, 0.5, 1, 1])
    for seed in range(5):
        view = Augmentation(config, 96).crop_view(photograph, BOX, np.random.default_rng(seed))
        assert view.image[..., 1].min() > 200  # nothing but the box


@pytest.mark.parametrize(
    "name, value",
    [("grey", 1.5), ("crop_area", 0.0), ("margin", -0.5), ("hue", 0.6), ("shrink", 0.5)],
)
def test_ranges_are_checked(name, value):
    with pytest.raises(InputError, match=f"data.augment.{name}={value} is not in"):
        AugmentConfig(**{name: value})
