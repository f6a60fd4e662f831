"""Colours, woven patterns and printed motifs of the synthetic garments.

Lengths are in body units (see `outlines`): a chest is about 0.42 wide. Every pixel comes from
plain arithmetic and comparisons; trigonometry only shapes outlines, in float64. So the same
pictures, byte for byte, are drawn on every machine.
"""

import math
from collections.abc import Callable

import numpy as np

Point = tuple[float, float]
Colour = tuple[int, int, int]

PALETTE: dict[str, Colour] = {
    "cream": (238, 230, 208),
    "charcoal": (52, 54, 62),
    "navy": (38, 58, 112),
    "red": (190, 48, 52),
    "mustard": (222, 172, 58),
    "forest": (46, 104, 74),
    "sky": (128, 180, 216),
    "rose": (226, 150, 164),
    "plum": (112, 62, 116),
    "rust": (196, 102, 54),
}

# Lengths of one repeat of a pattern: at 96 pixels a garment, 8 pixels or more.
PATTERN_PERIODS = (0.10, 0.14, 0.19)


def luminance(colour: Colour) -> float:
    """Returns the perceived lightness of an sRGB colour, 0 to 255 (ITU-R BT.601 weights)."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue


def darker(colour: Colour, factor: float) -> Colour:
    """Multiplies each channel by `factor`, rounded down."""
    red, green, blue = (int(factor * channel) for channel in colour)
    return red, green, blue


def _band(t: np.ndarray) -> np.ndarray:
    """Returns True in the first half of every unit interval of t."""
    return t - np.floor(t) < 0.5


def _dots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = np.floor(v)
    du = u + 0.5 * (row % 2) - np.floor(u + 0.5 * (row % 2)) - 0.5
    dv = v - row - 0.5
    return du * du + dv * dv < 0.36**2


def _grid(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Draws window-pane checks: thick crossing lines."""
    return (u - np.floor(u) < 0.3) | (v - np.floor(v) < 0.3)


def _chevrons(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    zigzag = np.abs(u / 2 - np.floor(u / 2) - 0.5) * 2
    return _band(v + zigzag)


def _diamonds(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    du = np.abs(u / 1.2 - np.floor(u / 1.2) - 0.5)
    dv = np.abs(v / 1.8 - np.floor(v / 1.8) - 0.5)
    return du + dv < 0.4


# name -> f(u, v), True where the second colour is; u, v count repeats across and down the cloth.
PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "solid": lambda u, v: np.zeros(np.broadcast(u, v).shape, bool),
    "horizontal stripes": lambda u, v: _band(v + 0 * u),
    "vertical stripes": lambda u, v: _band(u + 0.25 + 0 * v),
    "diagonal stripes": lambda u, v: _band(0.7 * (u + v)),
    "checkerboard": lambda u, v: _band(u) ^ _band(v),
    "window-pane": _grid,
    "dots": _dots,
    "chevrons": _chevrons,
    "diamonds": _diamonds,
    "halves": lambda u, v: u + 0 * v > 0,
}


def _regular(corners: int, turn: float = 0.0, radii: tuple[float, ...] = (1.0,)) -> list[Point]:
    """Returns corners of a polygon around the origin, the first on top, alternating radii."""
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    return [
        (radii[i % len(radii)] * math.sin(a), -radii[i % len(radii)] * math.cos(a))
        for i, a in enumerate(angles)
    ]


def _heart() -> list[Point]:
    angles = [2 * math.pi * i / 48 for i in range(48)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16,
        )
        for a in angles
    ]


def _crescent() -> list[Point]:
    outer = [(math.cos(a), math.sin(a)) for a in np.linspace(0.9, 2 * math.pi - 0.9, 32)]
    inner = [(0.62 * x + 0.24, 0.82 * y) for x, y in reversed(outer)]
    return outer + inner


# name -> polygons that fit the unit disc (x right, y down); a second polygon is a hole.
MOTIFS: dict[str, tuple[list[Point], ...]] = {
    "none": (),
    "disc": (_regular(40),),
    "ring": (_regular(40), _regular(40, radii=(0.52,))),
    "star": (_regular(10, radii=(1.1, 0.46)),),
    "heart": (_heart(),),
    "triangle": (_regular(3, radii=(1.1,)),),
    "cross": (
        [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)]
        + [(0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
    ),
    "bolt": ([(0.25, -1.1), (-0.6, 0.2), (-0.08, 0.2), (-0.3, 1.1), (0.62, -0.28), (0.08, -0.28)],),
    "bar": ([(-1.1, -0.42), (1.1, -0.42), (1.1, 0.42), (-1.1, 0.42)],),
    "crescent": (_crescent(),),
    "frame": (
        [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        [(-0.45, -0.45), (0.45, -0.45), (0.45, 0.45), (-0.45, 0.45)],
    ),
}
