"""Surroundings of a garment in a photograph: grounds, bodies, obstacles and light."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from capret_jax.synthetic.fabric import PALETTE, Colour, darker
from capret_jax.synthetic.outlines import ARM_DIRECTION, SHOULDER
from capret_jax.synthetic.placement import project

_OVERSAMPLING = 2
_SKIN = ((244, 208, 180), (226, 178, 142), (190, 134, 98), (142, 94, 66), (92, 62, 48))
_HAIR = ((38, 30, 28), (84, 54, 36), (150, 98, 54), (206, 168, 104), (120, 120, 124))
_MUTED = (
    ((206, 200, 190), (176, 184, 188), (150, 156, 148), (188, 164, 140), (120, 124, 132))
    + ((168, 176, 160), (212, 190, 168), (136, 112, 96), (98, 110, 122), (222, 216, 210))
)  # fmt: skip
_BACKDROPS = ((250, 250, 250), (243, 243, 241), (247, 243, 238), (238, 242, 246), (232, 232, 232))


def choose(rng: np.random.Generator, options):
    """Chooses one of the options with equal probability."""
    return options[int(rng.integers(len(options)))]


def _tinted(rng: np.random.Generator, colour: Colour, spread: int = 14) -> Colour:
    red, green, blue = np.clip(colour + rng.integers(-spread, spread + 1, 3), 0, 255).tolist()
    return red, green, blue


class Pen:
    """Draws smooth-edged shapes into an RGBA picture, through a homography from units to pixels."""

    def __init__(self, size: tuple[int, int], matrix: np.ndarray | None = None):
        self._matrix = np.diag([_OVERSAMPLING, _OVERSAMPLING, 1.0]) @ (
            np.eye(3) if matrix is None else matrix
        )
        # About the pixels of one unit in the drawing's middle.
        self._unit = float(np.hypot(*(self._matrix[:2, 1] / self._matrix[2, 2])))
        self._picture = Image.new("RGBA", (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING))
        self._draw = ImageDraw.Draw(self._picture)

    def shape(self, points, colour: Colour) -> None:
        mapped = project(self._matrix, points)
        self._draw.polygon([tuple(p) for p in mapped.tolist()], fill=(*colour, 255))

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        angles = [2 * math.pi * i / 32 for i in range(32)]
        self.shape([(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles], colour)

    def limb(self, points, width: float, colour: Colour) -> None:
        """Draws a thick line with round ends."""
        mapped = [tuple(p) for p in project(self._matrix, points).tolist()]
        radius = width * self._unit / 2
        self._draw.line(mapped, (*colour, 255), max(1, round(2 * radius)), joint="curve")
        for x, y in mapped:
            box = (x - radius, y - radius, x + radius, y + radius)
            self._draw.ellipse(box, fill=(*colour, 255))

    def finish(self) -> Image.Image:
        return self._picture.reduce(_OVERSAMPLING)


def _gradient(size: tuple[int, int], first: Colour, second: Colour, across: bool) -> Image.Image:
    ends = np.array([[first, second]] if across else [[first], [second]], np.uint8)
    return Image.fromarray(ends).resize(size, Image.Resampling.BICUBIC)


def draw_backdrop(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Draws a shop's plain light ground."""
    colour = np.array(choose(rng, _BACKDROPS))
    return _gradient(size, tuple(colour), tuple(colour - int(rng.integers(2, 16))), across=False)


def draw_clutter(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Draws a room or a street, out of focus: at half the size, then enlarged."""
    full, size = size, (size[0] // 2, size[1] // 2)
    width, height = size
    colours = _MUTED + tuple(PALETTE.values())
    wall, floor = _tinted(rng, choose(rng, _MUTED)), _tinted(rng, choose(rng, _MUTED))
    ground = _gradient(size, wall, _tinted(rng, wall, 40), across=bool(rng.integers(2)))
    draw = ImageDraw.Draw(ground)
    _wall_paper(rng, draw, size, _tinted(rng, wall, 24))
    skirting = int(height * rng.uniform(0.6, 0.9))
    draw.rectangle((0, skirting, width, height), fill=floor)
    for _ in range(int(rng.integers(5, 11))):
        x, y = rng.uniform(-0.1, 1.0) * width, rng.uniform(-0.1, 1.0) * height
        w, h = rng.uniform(0.1, 0.4) * width, rng.uniform(0.08, 0.4) * height
        colour = _tinted(rng, choose(rng, colours), 24)
        kind = int(rng.integers(4))
        if kind == 0:
            draw.ellipse((x, y, x + w, y + w), fill=colour)
        elif kind == 1:
            draw.polygon([(x, y + h), (x + w / 2, y), (x + w, y + h)], fill=colour)
        else:
            draw.rectangle((x, y, x + w, y + h), fill=colour)
            frame = (x + 0.15 * w, y + 0.15 * h, x + 0.85 * w, y + 0.85 * h)
            draw.rectangle(frame, fill=_tinted(rng, choose(rng, colours), 24))
    soft = ground.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.1))))
    return soft.resize(full, Image.Resampling.BICUBIC)


def _wall_paper(rng: np.random.Generator, draw, size: tuple[int, int], colour: Colour) -> None:
    """Draws boards or tiles, or nothing in a third of the calls."""
    kind, step = int(rng.integers(3)), int(rng.integers(7, 17))
    if kind:
        for x in range(0, size[0], step):
            draw.line((x, 0, x, size[1]), colour)
    if kind == 2:
        for y in range(0, size[1], step):
            draw.line((0, y, size[0], y), colour)


def draw_body(rng: np.random.Generator, size: tuple[int, int], matrix: np.ndarray) -> Image.Image:
    """Draws a standing person in plain underclothes, as an RGBA picture."""
    pen = Pen(size, matrix)
    skin, hair = _tinted(rng, choose(rng, _SKIN), 8), _tinted(rng, choose(rng, _HAIR), 8)
    plain = _tinted(rng, choose(rng, ((70, 72, 78), (150, 150, 152), (214, 210, 204))))
    shoe = _tinted(rng, choose(rng, ((40, 40, 44), (235, 235, 232), (120, 84, 60))))
    (dx, dy), (sx, sy) = ARM_DIRECTION, SHOULDER
    pen.oval(0, -0.2, 0.1, 0.125, hair)
    if rng.integers(2):  # long hair
        pen.shape([(-0.1, -0.2), (0.1, -0.2), (0.115, -0.02), (-0.115, -0.02)], hair)
    pen.limb([(0, -0.1), (0, 0.03)], 0.085, skin)
    for side in (-1, 1):
        pen.limb([(side * 0.09, 0.6), (side * 0.1, 1.42)], 0.105, skin)
        pen.limb([(side * 0.105, 1.46), (side * 0.135, 1.475)], 0.08, shoe)
        pen.limb([(side * 0.09, 0.58), (side * 0.095, 0.8)], 0.15, plain)
        hand = (side * (sx - 0.02 + 0.66 * dx), sy + 0.02 + 0.66 * dy)
        pen.limb([(side * (sx - 0.022), sy + 0.04), hand], 0.068, skin)
    pen.shape([(-0.04, 0.0), (0.04, 0.0), (0.18, 0.03), (0.16, 0.3), (0.15, 0.42), (0.17, 0.6)]
              + [(-0.17, 0.6), (-0.15, 0.42), (-0.16, 0.3), (-0.18, 0.03)], skin)  # fmt: skip
    pen.shape([(-0.12, 0.12), (0.12, 0.12), (0.15, 0.42), (0.17, 0.6), (-0.17, 0.6)]
              + [(-0.15, 0.42)], plain)  # fmt: skip
    pen.oval(0, -0.18, 0.078, 0.105, skin)
    pen.shape([(-0.082, -0.2), (-0.05, -0.285), (0.05, -0.285), (0.082, -0.2), (0.0, -0.245)], hair)
    return pen.finish()


def _bag(pen: Pen, rng: np.random.Generator, x: float, y: float, r: float) -> None:
    colour = _tinted(rng, choose(rng, _MUTED + tuple(PALETTE.values())))
    dark = darker(colour, 0.6)
    pen.limb([(x - 0.5 * r, y - 0.5 * r), (x - 0.3 * r, y - 1.4 * r), (x + 0.3 * r, y - 1.4 * r),
              (x + 0.5 * r, y - 0.5 * r)], 0.16 * r, dark)  # fmt: skip
    pen.shape([(x - 0.8 * r, y - 0.6 * r), (x + 0.8 * r, y - 0.6 * r), (x + r, y + r)]
              + [(x - r, y + r)], colour)  # fmt: skip
    pen.limb([(x - 0.8 * r, y - 0.1 * r), (x + 0.8 * r, y - 0.1 * r)], 0.12 * r, dark)


def _phone(pen: Pen, rng: np.random.Generator, x: float, y: float, r: float) -> None:
    skin = _tinted(rng, choose(rng, _SKIN), 8)
    pen.limb([(x + 2.2 * r, y + 2.4 * r), (x + 0.2 * r, y + 0.4 * r)], 0.9 * r, skin)
    pen.shape([(x - 0.55 * r, y - r), (x + 0.55 * r, y - r), (x + 0.55 * r, y + r)]
              + [(x - 0.55 * r, y + r)], (34, 34, 38))  # fmt: skip
    pen.oval(x - 0.25 * r, y - 0.7 * r, 0.14 * r, 0.14 * r, (110, 114, 124))


def _arm(pen: Pen, rng: np.random.Generator, x: float, y: float, r: float) -> None:
    skin, side = _tinted(rng, choose(rng, _SKIN), 8), choose(rng, (-1, 1))
    pen.limb([(x - side * 2.6 * r, y + 0.9 * r), (x + side * 0.5 * r, y)], 0.7 * r, skin)
    pen.oval(x + side * 0.75 * r, y - 0.1 * r, 0.5 * r, 0.42 * r, skin)


def _leaves(pen: Pen, rng: np.random.Generator, x: float, y: float, r: float) -> None:
    for _ in range(6):
        a, b = rng.uniform(-1, 1, 2) * r
        green = _tinted(rng, (72, 118, 66), 22)
        pen.shape([(x + a, y + b - 0.8 * r), (x + a + 0.3 * r, y + b), (x + a, y + b + 0.8 * r)]
                  + [(x + a - 0.3 * r, y + b)], green)  # fmt: skip


def draw_obstacle(rng: np.random.Generator, size: tuple[int, int], x: float, y: float, r: float):
    """Draws an obstacle at (x, y), of about radius r, in pixels, as an RGBA picture."""
    pen = Pen(size)
    choose(rng, (_bag, _phone, _arm, _leaves))(pen, rng, x, y, r)
    return pen.finish()


def add_wrinkles(rng: np.random.Generator, layer: Image.Image, sideways: float) -> Image.Image:
    """Adds soft folds to a garment; `sideways`, -1 to 1, darkens one of its sides."""
    folds = Image.fromarray(rng.integers(0, 256, (5, 4), np.uint8)).resize(
        layer.size, Image.Resampling.BICUBIC
    )
    factor = 0.87 + 0.2 / 255 * np.asarray(folds, np.float32)
    if sideways:
        box = layer.getbbox() or (0, 0, *layer.size)
        x = (np.arange(layer.width, dtype=np.float32) - box[0]) / max(1, box[2] - box[0])
        factor = factor * (1 - abs(sideways) * np.clip(x if sideways > 0 else 1 - x, 0, 1))
    rgb = np.asarray(layer.convert("RGB"), np.float32) * factor[..., None]
    shaded = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    shaded.putalpha(layer.getchannel("A"))
    return shaded


def apply_light(rng: np.random.Generator, picture: Image.Image, strength: float) -> Image.Image:
    """Applies exposure, colour cast, fall-off and noise; `strength` is 0 (studio) to 1."""
    exposure = 1 + strength * rng.uniform(-0.2, 0.16)
    gain = exposure * (1 + strength * rng.uniform(-0.1, 0.1, 3)).astype(np.float32)
    corners = (255 * (1 - strength * rng.uniform(0, 0.24, (2, 2)))).astype(np.uint8)
    falloff = Image.fromarray(corners).resize(picture.size, Image.Resampling.BILINEAR)
    shade = np.asarray(falloff, np.float32)[..., None] / 255
    lift = np.float32(strength * rng.uniform(-8, 18))  # haze
    rgb = np.asarray(picture, np.float32) * shade * gain.astype(np.float32)
    grain = 1 + int(4 * strength)
    rgb += rng.integers(-grain, grain + 1, rgb.shape[:2], np.int8)[..., None] + lift
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
