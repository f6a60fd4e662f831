"""Drawing of shop's and users' photographs of a garment."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from capret_jax.synthetic import scenery
from capret_jax.synthetic.garments import Cloth, Garment
from capret_jax.synthetic.placement import Appearance, Layer, Pose, homography, measure, place

NOT_WORN, FRONTAL, SIDE = 1, 2, 3  # viewpoints


@dataclass(frozen=True, eq=False)
class Wardrobe:
    """Drawn garments that are worn together with the main garment of a photograph."""

    tops: Sequence[tuple[Garment, Cloth]]
    bottoms: Sequence[tuple[Garment, Cloth]]

    def companion(self, rng: np.random.Generator, garment: Garment) -> tuple[Garment, Cloth] | None:
        """Chooses a garment to wear with the given one; None for a dress."""
        shape = garment.silhouette
        if shape.top and shape.bottom:
            return None
        return scenery.choose(rng, self.bottoms if shape.top else self.tops)


@dataclass(frozen=True, eq=False)
class DrawnPhotograph:
    """A picture, the main garment in it and its companion, where one is visible."""

    picture: Image.Image
    main: Appearance
    main_layer: Layer
    companion: tuple[Garment, Appearance] | None = None


def draw_shop_photograph(
    rng: np.random.Generator, garment: Garment, cloth: Cloth
) -> DrawnPhotograph:
    """Draws the garment alone, laid flat or worn, centred on a plain light ground."""
    size = (int(rng.integers(160, 201)), int(rng.integers(184, 225)))
    viewpoint = scenery.choose(rng, (NOT_WORN, FRONTAL))
    pose = Pose(
        tilt=rng.uniform(-0.06, 0.06),
        shear=rng.uniform(-0.04, 0.04),
        squeeze=rng.uniform(0.92, 1.06),
        perspective=tuple(rng.uniform(-0.05, 0.05, 2)),
    )
    height = _fitting(cloth, size, pose) * rng.uniform(0.78, 0.93)
    centre = np.array(size) * rng.uniform(0.48, 0.52, 2)
    matrix = homography(cloth, size, centre, height, pose)
    layer = place(cloth, matrix, size)
    picture = scenery.draw_backdrop(rng, size)
    if viewpoint == FRONTAL:
        _cover(picture, scenery.draw_body(rng, size, matrix))
    else:
        _shadow(picture, layer)
    _cover(picture, scenery.add_wrinkles(rng, layer.picture, 0.0))
    picture = scenery.apply_light(rng, picture, 0.15)
    appearance = measure(layer, ~layer.covered, viewpoint)
    assert appearance is not None, "a shop picture shows its whole garment"
    return DrawnPhotograph(picture, appearance, layer)


def draw_user_photograph(
    rng: np.random.Generator, garment: Garment, cloth: Cloth, wardrobe: Wardrobe
) -> DrawnPhotograph:
    """Draws the garment in a cluttered scene; repeats until enough of it is visible."""
    while True:
        photograph = _try_user_photograph(rng, garment, cloth, wardrobe)
        if photograph is not None:
            return photograph


def _try_user_photograph(
    rng: np.random.Generator, garment: Garment, cloth: Cloth, wardrobe: Wardrobe
) -> DrawnPhotograph | None:
    size = (int(rng.integers(150, 201)), int(rng.integers(180, 225)))
    viewpoint = scenery.choose(rng, (NOT_WORN,) + 6 * (FRONTAL,) + 3 * (SIDE,))
    matrix = _snapshot(rng, cloth, size, viewpoint)
    layer = place(cloth, matrix, size)
    turned = rng.uniform(0.2, 0.4) * scenery.choose(rng, (-1, 1)) if viewpoint == SIDE else 0.0
    picture = scenery.draw_clutter(rng, size)
    other = None
    if viewpoint == NOT_WORN:
        _shadow(picture, layer)
    else:
        _cover(picture, scenery.draw_body(rng, size, matrix))
        if rng.uniform() < 0.8:
            other = wardrobe.companion(rng, garment)
    if other is not None:
        other_layer = place(other[1], matrix, size)
        _cover(picture, scenery.add_wrinkles(rng, other_layer.picture, turned))
    _cover(picture, scenery.add_wrinkles(rng, layer.picture, turned))
    hidden = _obstruct(rng, picture, layer)
    main = measure(layer, hidden, viewpoint)
    if main is None:
        return None
    companion = None
    if other is not None:
        seen = measure(other_layer, hidden | layer.covered, viewpoint)
        companion = (other[0], seen) if seen else None
    picture = scenery.apply_light(rng, picture, 1.0)
    if rng.integers(3) == 0:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.8))))
    return DrawnPhotograph(picture, main, layer, companion)


def _fitting(cloth: Cloth, size: tuple[int, int], pose: Pose) -> float:
    """Returns the largest height in pixels at which the whole cloth is inside the picture."""
    x1, y1, x2, y2 = cloth.extent
    lean = abs(pose.tilt) + abs(pose.shear)
    wide = pose.squeeze * (x2 - x1) / (y2 - y1) + lean
    return min(size[0] / wide, size[1] / (1 + lean * wide))


def _snapshot(
    rng: np.random.Generator, cloth: Cloth, size: tuple[int, int], viewpoint: int
) -> np.ndarray:
    """Draws a camera position: (3, 3) homography from body units to pixels."""
    pose = Pose(
        tilt=rng.uniform(-0.3, 0.3),
        shear=rng.uniform(-0.18, 0.18),
        squeeze=rng.uniform(0.6, 0.78) if viewpoint == SIDE else rng.uniform(0.88, 1.08),
        perspective=tuple(rng.uniform(-0.16, 0.16, 2)),
    )
    fitting = _fitting(cloth, size, pose)
    if rng.uniform() < 0.3:  # zoomed in: beyond the edges
        height, reach = fitting * rng.uniform(1.1, 1.5), 0.12
    else:
        height = fitting * rng.choice(
            (rng.uniform(0.42, 0.6), rng.uniform(0.6, 0.92)), p=(0.3, 0.7)
        )
        reach = 0.4 * (1 - height / fitting)
    centre = np.array(size) * (0.5 + rng.uniform(-reach, reach, 2))
    return homography(cloth, size, centre, height, pose)


def _cover(picture: Image.Image, layer: Image.Image) -> None:
    picture.paste(layer, mask=layer.getchannel("A"))


def _shadow(picture: Image.Image, layer: Layer) -> None:
    """Draws a soft shadow under a garment that lies or hangs."""
    alpha = layer.picture.getchannel("A").point([level * 2 // 5 for level in range(256)])
    picture.paste((60, 58, 56), (3, 4), alpha.filter(ImageFilter.GaussianBlur(4)))


def _obstruct(rng: np.random.Generator, picture: Image.Image, layer: Layer) -> np.ndarray:
    """Draws an obstacle over the garment in 60 % of the calls.

    Returns:
        (H, W) bool, True where the obstacle hides the picture.
    """
    covered = layer.covered
    if rng.uniform() < 0.4 or not covered.any():
        return np.zeros_like(covered)
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    # Obstacles leave the middle free, where the print is.
    x = columns[0] + width * (0.5 + scenery.choose(rng, (-1, 1)) * rng.uniform(0.26, 0.5))
    y = rows[0] + height * (0.5 + rng.uniform(-0.15, 0.5))
    radius = rng.uniform(0.13, 0.25) * float(width * height) ** 0.5
    obstacle = scenery.draw_obstacle(rng, picture.size, float(x), float(y), radius)
    _cover(picture, obstacle)
    return np.asarray(obstacle.getchannel("A")) >= 128
