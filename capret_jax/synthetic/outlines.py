"""Outlines of garments as polygons.

Body units: x runs to the right from the body's axis, y down from the shoulders; the waist is at
0.42, the crotch at 0.66, the knees at 1.0 and the ankles at 1.45. All garments are drawn in this
one frame, so that a top, the trousers under it and the body in both fit together.
"""

from dataclasses import dataclass

import numpy as np

from capret_jax.synthetic.fabric import Point

ARM_DIRECTION = (0.36, 0.933)  # unit vector from the shoulder to the hand
SHOULDER = (0.195, 0.035)


NECKLINES = ("round", "v", "square")


@dataclass(frozen=True)
class Silhouette:
    """The construction of a category: its upper part, sleeves, lower part and front."""

    top: str | None = None  # "shoulders", "tank" or "straps"
    sleeve: float | None = None  # reach along the arm, body units
    bottom: str | None = None  # "legs" or "skirt"
    reach: float = 0.62  # y of the hem of an average length
    open_front: bool = False


# One row per DeepFashion2 category, in the order of `schema.CATEGORIES`.
SILHOUETTES = (
    Silhouette("shoulders", sleeve=0.22),
    Silhouette("shoulders", sleeve=0.56),
    Silhouette("shoulders", sleeve=0.26, reach=0.68, open_front=True),
    Silhouette("shoulders", sleeve=0.58, reach=0.74, open_front=True),
    Silhouette("tank"),
    Silhouette("straps"),
    Silhouette(bottom="legs", reach=0.86),
    Silhouette(bottom="legs", reach=1.38),
    Silhouette(bottom="skirt", reach=0.92),
    Silhouette("shoulders", sleeve=0.22, bottom="skirt", reach=1.02),
    Silhouette("shoulders", sleeve=0.56, bottom="skirt", reach=1.02),
    Silhouette("tank", bottom="skirt", reach=1.02),
    Silhouette("straps", bottom="skirt", reach=1.02),
)


@dataclass(frozen=True)
class Cut:
    """Variations of a silhouette; the numbers are -1 to 1, 0 is average."""

    neckline: str = "round"  # of `NECKLINES`
    fit: float = 0.0  # tight to loose
    length: float = 0.0
    flare: float = 0.0  # how far the hem widens
    sleeve: float = 0.0  # narrow to wide cuffs


@dataclass(frozen=True)
class Outline:
    """Closed polygons and lines, in body units."""

    body: list[Point]
    sleeve: list[Point]  # the right one; the left mirrors it
    straps: list[Point]  # the right one, as a thick line
    waist: float | None  # y of a waistband or waist seam
    hem: float


def _smooth(points: list[Point], steps: int = 8) -> list[Point]:
    """Returns a Catmull-Rom curve through the points, ends included."""
    p = np.array([points[0], *points, points[-1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    curve = [
        0.5
        * (
            2 * p[i]
            + (p[i + 1] - p[i - 1]) * t
            + (2 * p[i - 1] - 5 * p[i] + 4 * p[i + 1] - p[i + 2]) * t**2
            + (3 * p[i] - p[i - 1] - 3 * p[i + 1] + p[i + 2]) * t**3
        )
        for i in range(1, len(p) - 2)
    ]
    return [tuple(point) for point in np.concatenate(curve)] + [points[-1]]


def mirrored(points: list[Point]) -> list[Point]:
    """Mirrors a line to the other side of the body, with its points in reverse order."""
    return [(-x, y) for x, y in reversed(points)]


def _neckline(cut: Cut, top: str) -> list[Point]:
    """Returns the line from the middle of the neckline to the edge of the shoulder."""
    if top == "straps":
        dip = {"round": 0.15, "v": 0.19, "square": 0.12}[cut.neckline]
        return [(0.0, dip), (0.07, 0.135), (0.15, 0.12)]
    width = 0.085 if top == "shoulders" else 0.10
    if cut.neckline == "v":
        return [(0.0, 0.19), (width, -0.012)]
    if cut.neckline == "square":
        return [(0.0, 0.10), (width, 0.10), (width, -0.012)]
    return _smooth([(0.0, 0.085), (0.7 * width, 0.055), (width, -0.012)])


def _torso_side(cut: Cut, top: str) -> list[Point]:
    """Returns the line from the shoulder's tip down to the waist."""
    loose = 0.018 * cut.fit
    waist = (0.158 + 2 * loose, 0.42)
    if top == "straps":
        return _smooth([(0.165, 0.17), (0.16 + loose, 0.28), waist])
    if top == "tank":
        hole = _smooth([(0.165, 0.01), (0.135, 0.11), (0.18 + loose, 0.2)])
        return hole + _smooth([(0.182 + loose, 0.22), (0.165 + loose, 0.32), waist])
    return [SHOULDER, *_smooth([(0.185 + loose, 0.19), (0.168 + loose, 0.31), waist])]


def _lower_side(shape: Silhouette, cut: Cut, hem: float) -> list[Point]:
    """Returns the line from the waist to the hem's middle, around the crotch if it has legs."""
    loose = 0.02 * cut.fit
    if shape.bottom is None:
        width = 0.178 + 2 * loose + 0.03 * cut.flare
        return [*_smooth([(0.165 + 2 * loose, 0.5), (width, hem)]), (0.6 * width, hem + 0.008)]
    hips = (0.198 + loose, 0.56)
    if shape.bottom == "skirt":
        width = 0.25 + 0.08 * cut.flare + loose
        return [*_smooth([hips, (0.225 + 0.03 * cut.flare, 0.7), (width, hem)])] + [
            (0.6 * width, hem + 0.018),
            (0.0, hem + 0.022),
        ]
    outer = 0.19 + 0.045 * cut.flare + loose
    inner = 0.035 if hem < 1.1 else 0.07 - 0.03 * cut.flare
    return [*_smooth([hips, (outer + 0.004, 0.8), (outer, hem)]), (inner, hem + 0.008), (0.0, 0.67)]


def _sleeve(shape: Silhouette, cut: Cut) -> list[Point]:
    if shape.sleeve is None:
        return []
    (dx, dy), (x, y) = ARM_DIRECTION, SHOULDER
    half = (0.062 if shape.sleeve > 0.4 else 0.075) * (1 + 0.32 * cut.sleeve)
    # The middle of the cuff; the cuff itself is at right angles to the arm.
    cx, cy = x + dx * shape.sleeve - 0.012, y + dy * shape.sleeve + 0.02
    outer, inner = (cx + half * dy, cy - half * dx), (cx - half * dy, cy + half * dx)
    bulge = (x + 0.062, y + 0.075)
    return [*_smooth([(0.10, 0.0), SHOULDER, bulge, outer]), inner, (0.17, 0.24), (0.12, 0.12)]


def trace(shape: Silhouette, cut: Cut) -> Outline:
    """Outlines a garment of one shape in one cut, in body units."""
    hem = shape.reach + (0.16 if shape.reach > 1.2 else 0.09) * cut.length * (shape.reach > 0.8)
    hem += 0.05 * cut.length * (shape.reach <= 0.8)
    if shape.top is None:
        upper = [(0.0, 0.425), (0.152, 0.42)]
    else:
        upper = _neckline(cut, shape.top) + _torso_side(cut, shape.top)
    right = upper + _lower_side(shape, cut, hem)
    straps = [(0.135, 0.15), (0.118, 0.04), (0.1, -0.02)] if shape.top == "straps" else []
    waist = 0.43 if shape.bottom == "skirt" and shape.top else 0.46 if shape.bottom else None
    return Outline(right + mirrored(right), _sleeve(shape, cut), straps, waist, hem)
