"""A plain Pillow loop over photographs, with which `bench_input.py` compares the pipeline."""

import json
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from capret_jax.config import AugmentConfig


def pillow_loop(
    files: list[pathlib.Path], size: int, batch_size: int, changes: AugmentConfig | None
) -> Callable[[], object]:
    """Returns a function that reads the next batch with Pillow, in the simplest way.

    Args:
        files: the photographs, in a raw DeepFashion2 folder.
        size: S, pixels of a side of the pictures.
        batch_size: B, photographs of a batch.
        changes: random changes of a crop; None resizes the whole photograph alone.
    """
    place, rng = iter(range(10**9)), np.random.default_rng(0)

    def view(file):
        image = Image.open(file).convert("RGB")
        if changes is None:
            return image.resize((size, size))
        annotation = file.parent.parent / "annos" / f"{file.stem}.json"
        box = json.loads(annotation.read_text())["item1"]["bounding_box"]
        return _changed(image.crop(box), size, changes, rng)

    def batch():
        chosen = [files[next(place) % len(files)] for _ in range(batch_size)]
        return np.stack([np.asarray(view(file)) for file in chosen])

    return batch


def _changed(
    image: Image.Image, size: int, config: AugmentConfig, rng: np.random.Generator
) -> Image.Image:
    """Changes a view as the pipeline does, one operation after the other, as scripts do."""
    scale = rng.uniform(config.crop_area, 1) ** 0.5
    width, height = image.size
    left, top = rng.uniform(0, 1 - scale, 2) * image.size
    box = left, top, left + scale * width, top + scale * height
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    image = image.rotate(rng.uniform(-config.rotate, config.rotate), Image.Resampling.BILINEAR)
    shifts = rng.uniform(-0.5, 0.5, 8) * config.perspective * size
    corners = np.array([0, 0, 0, size, size, size, size, 0]) + shifts
    image = image.transform(
        (size, size), Image.Transform.QUAD, corners.tolist(), Image.Resampling.BILINEAR
    )
    if rng.random() < config.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance, reach in (
        (ImageEnhance.Brightness, config.brightness),
        (ImageEnhance.Contrast, config.contrast),
        (ImageEnhance.Color, config.saturation),
    ):
        image = enhance(image).enhance(rng.uniform(1 - reach, 1 + reach))
    hue, saturation, value = image.convert("HSV").split()
    turn = round(255 * rng.uniform(-config.hue, config.hue))
    hue = hue.point([(level + turn) % 256 for level in range(256)])
    image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    for name in rng.choice(list(_OPERATIONS), config.randaugment):
        if rng.random() < 0.5:
            image = _OPERATIONS[name](image)
    if rng.random() < config.blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2) * size / 224))
    if rng.random() < config.erase:
        left, top = rng.integers(size // 2, size=2)
        image.paste((128, 128, 128), (left, top, left + size // 3, top + size // 3))
    return image


def _moved(*coefficients: float) -> Callable[[Image.Image], Image.Image]:
    """Returns an affine map of a picture."""
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )


_OPERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "identity": lambda image: image,
    "autocontrast": ImageOps.autocontrast,
    "equalise": ImageOps.equalize,
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.36),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1.36),
    "shear_x": _moved(1, 0.21, 0, 0, 1, 0),
    "shear_y": _moved(1, 0, 0, 0.21, 1, 0),
    "translate_x": _moved(1, 0, 7, 0, 1, 0),
    "translate_y": _moved(1, 0, 0, 0, 1, 7),
    "rotate": lambda image: image.rotate(21, Image.Resampling.BILINEAR),
}
