"""Drawing one garment, flat and evenly lit, as a transparent picture in body units."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from capret_jax.synthetic import fabric
from capret_jax.synthetic.fabric import Colour, Point
from capret_jax.synthetic.outlines import (
    ARM_DIRECTION,
    SHOULDER,
    SILHOUETTES,
    Cut,
    Outline,
    Silhouette,
    mirrored,
    trace,
)

CLOTH_PIXELS = 224  # the longer side of a drawn garment
_OVERSAMPLING = 2  # drawn larger, then averaged: smooth edges


@dataclass(frozen=True)
class Garment:
    """The properties of a garment's look; colours are names in `fabric.PALETTE`."""

    category_id: int  # 1..13
    cut: Cut = Cut()
    colour: str = "navy"
    second_colour: str = "cream"
    pattern: str = "solid"  # a key of `fabric.PATTERNS`
    pattern_scale: int = 1  # index into `fabric.PATTERN_PERIODS`
    motif: str = "none"  # a key of `fabric.MOTIFS`
    motif_colour: str = "red"

    @property
    def silhouette(self) -> Silhouette:
        return SILHOUETTES[self.category_id - 1]


@dataclass(frozen=True, eq=False)
class Cloth:
    """A drawn garment: an RGBA picture and the rectangle of the body frame that it covers."""

    picture: Image.Image
    extent: tuple[float, float, float, float]  # x1, y1, x2, y2 in body units


class _Canvas:
    """Maps body units onto an oversampled canvas and draws masks there."""

    def __init__(self, outline: Outline):
        points = np.array(outline.body + outline.sleeve + outline.straps)
        right, (top, bottom) = np.abs(points[:, 0]).max(), (points[:, 1].min(), points[:, 1].max())
        margin = 0.02
        sides = 2 * (right + margin), bottom - top + 2 * margin
        self.scale = _OVERSAMPLING * CLOTH_PIXELS / max(sides)
        self.size = tuple(
            _OVERSAMPLING * math.ceil(round(side * self.scale / _OVERSAMPLING, 6)) for side in sides
        )
        width, height = (pixels / self.scale for pixels in self.size)
        self.extent = (-width / 2, top - margin, width / 2, top - margin + height)

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns body coordinates of the pixels' centres: x (1, W) and y (H, 1), float32."""
        x = (np.arange(self.size[0], dtype=np.float32) + 0.5) / self.scale + self.extent[0]
        y = (np.arange(self.size[1], dtype=np.float32) + 0.5) / self.scale + self.extent[1]
        return x[None].astype(np.float32), y[:, None].astype(np.float32)

    def at(self, points: list[Point]) -> list[Point]:
        x0, y0 = self.extent[:2]
        return [((x - x0) * self.scale, (y - y0) * self.scale) for x, y in points]

    def mask(self, *polygons: list[Point]) -> Image.Image:
        """Returns the 8-bit mask of the first polygon minus the others."""
        mask = Image.new("L", self.size)
        draw = ImageDraw.Draw(mask)
        for i, polygon in enumerate(polygons):
            if polygon:
                draw.polygon(self.at(polygon), fill=0 if i else 255)
        return mask

    def line(self, draw: ImageDraw.ImageDraw, points: list[Point], fill, width: float) -> None:
        draw.line(self.at(points), fill, max(1, round(width * self.scale)), joint="curve")


def _weave(garment: Garment, x: np.ndarray, y: np.ndarray) -> Image.Image:
    """Draws cloth at body coordinates x, y, which broadcast to the picture's (H, W)."""
    period = fabric.PATTERN_PERIODS[garment.pattern_scale]
    second = fabric.PATTERNS[garment.pattern](x / period, y / period)
    cloth = Image.new("RGB", second.shape[::-1], fabric.PALETTE[garment.colour])
    mask = Image.fromarray(second.astype(np.uint8) * np.uint8(255))
    cloth.paste(fabric.PALETTE[garment.second_colour], mask=mask)
    return cloth


def _sleeve_weave(garment: Garment, x: np.ndarray, y: np.ndarray) -> Image.Image:
    """Draws the same cloth, turned so that it follows the arms."""
    (dx, dy), (sx, sy) = ARM_DIRECTION, SHOULDER
    across = (np.abs(x) - sx) * dy - (y - sy) * dx
    along = (np.abs(x) - sx) * dx + (y - sy) * dy
    across = np.where(x < 0, -across, across)
    if garment.pattern == "halves":  # each half of the garment keeps its colour
        across = np.broadcast_to(x, across.shape)
    return _weave(garment, across, along)


def _motif_place(garment: Garment) -> tuple[float, float, float]:
    """Returns centre x, y and radius of the printed motif."""
    shape = garment.silhouette
    if shape.open_front:
        return -0.102, 0.4, 0.07
    if shape.top:
        return 0.0, 0.305, 0.105
    return (-0.11, 0.66, 0.078) if shape.bottom == "legs" else (0.0, 0.68, 0.11)


def _print_motif(garment: Garment, canvas: _Canvas, picture: Image.Image) -> None:
    polygons = fabric.MOTIFS[garment.motif]
    if not polygons:
        return
    cx, cy, radius = _motif_place(garment)
    placed = [[(cx + radius * px, cy + radius * py) for px, py in poly] for poly in polygons]
    stamp = canvas.mask(*placed)
    if garment.pattern != "solid":
        # An edge of the ground's colour separates the motif from the pattern around it.
        draw = ImageDraw.Draw(picture)
        for edge in placed:
            canvas.line(draw, edge + edge[:2], fabric.PALETTE[garment.colour], 0.03)
    picture.paste(fabric.PALETTE[garment.motif_colour], mask=stamp)


def _seams(garment: Garment, outline: Outline, canvas: _Canvas, picture: Image.Image) -> None:
    """Draws waistband, fly, placket, lapels and buttons, which distinguish the categories."""
    draw = ImageDraw.Draw(picture)
    base: Colour = fabric.PALETTE[garment.colour]
    ink = fabric.darker(base, 0.55) if fabric.luminance(base) > 80 else (150, 150, 158)
    if outline.waist:
        canvas.line(draw, [(-0.3, outline.waist), (0.3, outline.waist)], ink, 0.008)
    if garment.silhouette.bottom == "legs":
        canvas.line(draw, [(0.0, 0.43), (0.0, 0.68)], ink, 0.008)
        for side in (-1, 1):
            canvas.line(draw, [(side * 0.1, 0.46), (side * 0.18, 0.54)], ink, 0.008)
    if garment.silhouette.open_front:
        _lapels(garment, outline, canvas, draw, ink)


def _lapels(garment: Garment, outline: Outline, canvas: _Canvas, draw, ink: Colour) -> None:
    """Draws the shirt between the two fronts of outwear, and the lapels folded outwards."""
    shirt = [(-0.085, -0.03), (0.085, -0.03), (0.024, 0.27), (0.03, outline.hem + 0.05)]
    draw.polygon(canvas.at(shirt + [(-0.03, outline.hem + 0.05), (-0.024, 0.27)]), (226, 226, 222))
    collar = {"round": 0.15, "v": 0.13, "square": 0.165}[garment.cut.neckline]
    for side in (-1, 1):
        lapel = [(0.085, -0.02), (collar, 0.09), (0.105, 0.11), (0.024, 0.27)]
        lapel = [(side * x, y) for x, y in lapel]
        draw.polygon(canvas.at(lapel), fabric.PALETTE[garment.colour])
        canvas.line(draw, [*lapel, lapel[0]], ink, 0.008)
        canvas.line(draw, [(side * 0.024, 0.27), (side * 0.03, outline.hem)], ink, 0.008)
        canvas.line(draw, [(side * 0.07, 0.55), (side * 0.14, 0.545)], ink, 0.01)


def _rim(alpha: Image.Image) -> np.ndarray:
    """Returns a (H, W, 1) float32 factor, darker at the garment's edges, for a round look."""
    soft = (
        alpha.reduce(8)
        .filter(ImageFilter.BoxBlur(1.4))
        .resize(alpha.size, Image.Resampling.BILINEAR)
    )
    return (0.66 + 0.36 * np.asarray(soft, np.float32) / 255)[..., None]


def draw_garment(garment: Garment) -> Cloth:
    """Draws the garment, flat and evenly lit; its longer side is `CLOTH_PIXELS` pixels long."""
    outline = trace(garment.silhouette, garment.cut)
    canvas = _Canvas(outline)
    x, y = canvas.grid()
    picture = _weave(garment, x, y)
    alpha = canvas.mask(outline.body)
    _print_motif(garment, canvas, picture)
    if outline.straps:
        draw = ImageDraw.Draw(alpha)
        for strap in (outline.straps, mirrored(outline.straps)):
            canvas.line(draw, strap, 255, 0.024)
    shade = _rim(alpha)
    _seams(garment, outline, canvas, picture)
    if outline.sleeve:
        sleeves = ImageChops.lighter(
            canvas.mask(outline.sleeve), canvas.mask(mirrored(outline.sleeve))
        )
        # Sleeves lie behind the body: only the part outside of it is visible.
        behind = ImageChops.subtract(sleeves, alpha)
        picture.paste(_sleeve_weave(garment, x, y), mask=behind)
        shade = np.where(np.asarray(behind)[..., None] > 0, 0.92 * _rim(sleeves), shade)
        alpha = ImageChops.lighter(alpha, sleeves)
    lit = np.clip(np.asarray(picture, np.float32) * shade, 0, 255).astype(np.uint8)
    flat = Image.fromarray(lit)
    flat.putalpha(alpha)
    return Cloth(flat.reduce(_OVERSAMPLING), canvas.extent)
