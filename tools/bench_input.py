"""Benchmarks the input pipeline: photographs of 300 to 1000 px in ArrayRecord -> training batches.

    python tools/bench_input.py [--size=384] [--threads=0,1,2] [--augment] [--json=OUT]

Compares it with a plain Pillow loop (open, decode, resize, stack) over the same files, in images
per second of wall-clock time and of CPU time (the rate of one core). With --augment, both change
views in all ways that `data.augment` knows. Then measures one thread's time by stage. The
photographs are noise with the spectrum of natural images and about as many bytes per pixel as
DeepFashion2's.
"""

import dataclasses
import io
import json
import pathlib
import tempfile
import time
from collections.abc import Callable

import cv2
import numpy as np
from absl import flags
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from tqdm import tqdm

from capret_jax.command_line import run
from capret_jax.config import (
    SIZES,
    AugmentConfig,
    CaptionConfig,
    DataConfig,
    ExperimentConfig,
    LoopConfig,
    ReadConfig,
    ViewConfig,
)
from capret_jax.config.data import VIEWS
from capret_jax.data.captions import TrainingCaptions
from capret_jax.data.images import Photograph
from capret_jax.data.masking import Masker
from capret_jax.data.pipeline import TrainingText, training_iterator
from capret_jax.data.sampler import make_sampler
from capret_jax.data.schema import CATEGORIES, LEVELS
from capret_jax.data.tokenizer import CaptionEncoder, build_vocabulary, load_tokenizer
from capret_jax.data.transforms import Augmentation
from capret_jax.datasets import Dataset, open_dataset

_SIZE = flags.DEFINE_integer("size", 384, "Pixels of the model's input.")
_PHOTOGRAPHS = flags.DEFINE_integer("photographs", 256, "A multiple of 4.", lower_bound=8)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Images a batch.")
_IMAGES = flags.DEFINE_integer("images", 1024, "Images to time, of each variant.")
_THREADS = flags.DEFINE_list("threads", ["0", "1", "2"], "Numbers of threads of the pipeline.")
_VIEW = flags.DEFINE_enum("view", "crop", VIEWS, "config.data.view.kind.")
_AUGMENT = flags.DEFINE_bool("augment", False, "Switch all augmentation on.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Measurements of each rate.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "File for the figures.")

# Every change with a probability or a range that is often drawn.
_ALL = AugmentConfig(
    margin=0.0, shrink=0.2, crop_area=0.5, rotate=20.0, perspective=0.2, brightness=0.3,
    colour=0.12, contrast=0.3, saturation=0.4, hue=0.03, grey=0.05, blur=0.5, erase=0.5,
    erase_area=0.3, randaugment=2,
)  # fmt: skip
_SIDES = (300, 1000)
_QUALITY = 88


def main(argv: list[str]) -> None:
    """Prints and writes images per second, and milliseconds by stage."""
    del argv
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        size = _write_raw(root / "raw", _PHOTOGRAPHS.value)
        config = DataConfig("deepfashion2", source_dir=str(root / "raw"), prepared_dir=folder)
        dataset = open_dataset(config)
        files = sorted((root / "raw" / "train" / "image").glob("*.jpg"))
        print(f"{len(files)} photographs, {size / 1e3:.0f} kB on average, to {_SIZE.value} px")
        make = _Pipeline(dataset, root)
        variants = {"Pillow loop": _pillow(files)} | {
            f"pipeline, {threads} threads": make.batches(threads)
            for threads in map(int, _THREADS.value)
        }
        rates = _rates(variants)
        stages = make.stages()
    _report(rates, stages)


class _Pipeline:
    """The training pipeline of a dataset."""

    def __init__(self, dataset: Dataset, folder: pathlib.Path):
        self._split = dataset.train
        self._captions = TrainingCaptions(CaptionConfig(), self._split.items)
        build_vocabulary(self._captions, folder / "vocab.txt", 2000)
        self._encoder = CaptionEncoder(load_tokenizer(str(folder / "vocab.txt")), 40)
        self._masker = Masker(self._encoder.tokenizer)

    def batches(self, threads: int) -> Callable[[], object]:
        """Returns a function that reads the next batch."""
        config = ExperimentConfig(
            batch_size=_BATCH.value,
            model=dataclasses.replace(SIZES["base"], image_size=_SIZE.value),
            data=DataConfig(
                views_per_identity=2,
                view=ViewConfig(_VIEW.value),
                augment=_augmentation(),
                read=ReadConfig(threads, prefetch=2),
            ),
            loop=LoopConfig(steps=10**6),
        )
        sampler = make_sampler(self._split.items, config)
        text = TrainingText(self._captions, self._encoder, self._masker)
        iterator = training_iterator(self._split, sampler, text, config)
        return lambda: next(iterator)

    def stages(self) -> dict[str, float]:
        """Measures milliseconds per image on one thread, by stage."""
        items, size, rng = self._split.items, _SIZE.value, np.random.default_rng(0)
        rows = rng.permutation(len(items))[:256].tolist()
        plain = AugmentConfig(brightness=0, colour=0, erase=0, flip=0)
        jpegs = [self._split.records.image(int(items.record[row])) for row in rows]

        def view(i, config):
            photograph, rng = Photograph(jpegs[i], ""), np.random.default_rng(i)
            Augmentation(config, size).crop_view(photograph, items.box[rows[i]], rng)

        def text(row):
            self._masker(self._encoder(self._captions(row, rng)), rng)

        places = range(len(rows))
        picture = np.zeros((size, size, 3), np.uint8)
        times = {
            "read the record": _each(self._split.records.image, items.record[rows].tolist()),
            "decode": _each(lambda i: Photograph(jpegs[i], "").pixels(), places),
            "crop and resize": _each(lambda i: view(i, plain), places),
            "augment": _each(lambda i: view(i, _augmentation()), places),
            "caption, tokens, masks": _each(text, rows),
            "stack": _each(np.stack, [[picture] * _BATCH.value] * 8) / _BATCH.value,
        }
        # The times of views include those of the stages before.
        times["augment"] -= times["crop and resize"]
        times["crop and resize"] -= times["decode"]
        return times


def _pillow(files: list[pathlib.Path]) -> Callable[[], object]:
    """Returns a function that reads the next batch with Pillow, in the simplest way."""
    place, rng = iter(range(10**9)), np.random.default_rng(0)
    sides = _SIZE.value, _SIZE.value

    def view(file):
        image = Image.open(file).convert("RGB")
        if not _AUGMENT.value:
            return image.resize(sides)
        annotation = file.parent.parent / "annos" / f"{file.stem}.json"
        box = json.loads(annotation.read_text())["item1"]["bounding_box"]
        return _pillow_changes(image.crop(box), rng)

    def batch():
        chosen = [files[next(place) % len(files)] for _ in range(_BATCH.value)]
        return np.stack([np.asarray(view(file)) for file in chosen])

    return batch


def _pillow_changes(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Changes a view as `_ALL` does, one operation after the other, as training scripts do."""
    config, size = _ALL, _SIZE.value
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
    for name in rng.choice(list(_PILLOW_OPERATIONS), config.randaugment):
        if rng.random() < 0.5:
            image = _PILLOW_OPERATIONS[name](image)
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


_PILLOW_OPERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
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


def _augmentation() -> AugmentConfig:
    return _ALL if _AUGMENT.value else AugmentConfig()


def _rates(variants: dict[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
    """Measures all variants in turn, several times; returns the medians, and the spread."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for _ in range(_REPEATS.value):
        for name, batch in variants.items():
            measured[name].append(_rate(batch, name))
    return {
        name: {key: float(np.median([rate[key] for rate in rates])) for key in rates[0]}
        | {"spread": float(np.ptp([rate["images_per_core_second"] for rate in rates]))}
        for name, rates in measured.items()
    }


def _rate(batch: Callable[[], object], name: str) -> dict[str, float]:
    """Measures images per second of wall-clock and of CPU time, after some untimed batches."""
    for _ in range(3):
        batch()
    wall, cpu = time.perf_counter(), time.process_time()
    count = -(-_IMAGES.value // _BATCH.value)
    for _ in tqdm(range(count), name, unit="batch", leave=False):
        batch()
    images = count * _BATCH.value
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"images_per_second": images / wall, "images_per_core_second": images / cpu}


def _each(function: Callable, arguments) -> float:
    start = time.perf_counter()
    for argument in arguments:
        function(argument)
    return (time.perf_counter() - start) / len(arguments) * 1e3


def _report(rates: dict, stages: dict) -> None:
    plain = rates["Pillow loop"]["images_per_core_second"]
    print(f"{'':24}{'images/s':>10}{'per core':>10}{'spread':>10}")
    for name, rate in rates.items():
        ratio = rate["images_per_core_second"] / plain
        print(
            f"{name:24}{rate['images_per_second']:10.0f}{rate['images_per_core_second']:10.0f}"
            f"{rate['spread']:10.0f}{ratio:9.2f}x"
        )
    total = sum(stages.values())
    print("one thread, by stage:")
    for name, milliseconds in stages.items():
        print(f"    {name:24}{milliseconds:7.2f} ms{milliseconds / total:7.0%}")
    if _JSON.value:
        content = {"rates": rates, "stages_ms": stages}
        pathlib.Path(_JSON.value).write_text(json.dumps(content, indent=2) + "\n")


def _write_raw(root: pathlib.Path, count: int) -> float:
    """Writes a raw DeepFashion2 folder, one item a photograph; returns their mean size in bytes."""
    rng, total = np.random.default_rng(0), 0
    for split, numbers in (("train", range(count)), ("validation", range(8))):
        for folder in ("image", "annos"):
            (root / split / folder).mkdir(parents=True)
        for number in tqdm(numbers, f"drawing {split}", leave=False):
            width, height = rng.integers(*_SIDES, 2, endpoint=True)
            jpeg = _photograph(width, height, rng)
            total += len(jpeg) if split == "train" else 0
            name = f"{number + 1:06}"
            (root / split / "image" / f"{name}.jpg").write_bytes(jpeg)
            annotation = _annotation(number, width, height, rng)
            (root / split / "annos" / f"{name}.json").write_text(json.dumps(annotation))
    return total / count


def _photograph(width: int, height: int, rng: np.random.Generator) -> bytes:
    """Makes noise at all scales, stronger at coarse ones; mostly in light, less in colour."""
    pixels = np.full((height, width, 3), 128, np.float32)
    cell = 2
    while cell <= max(width, height):
        shape = (height // cell + 1, width // cell + 1)
        light, colour = rng.normal(size=(*shape, 1)), rng.normal(size=(*shape, 3))
        noise = (light + 0.4 * colour).astype(np.float32)
        pixels += 3 * cell**0.45 * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        cell *= 2
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _annotation(number: int, width: int, height: int, rng: np.random.Generator) -> dict:
    """Makes an annotation; four photographs are an identity, two of them from the shop."""
    sides = rng.uniform(0.35, 0.95, 2) * (width, height)
    corner = rng.uniform(0, 1, 2) * ((width, height) - sides)
    category = int(rng.integers(len(CATEGORIES)))
    return {
        "source": "shop" if number % 2 else "user",
        "pair_id": number // 4,
        "item1": {
            "category_name": CATEGORIES[category],
            "category_id": category + 1,
            "style": 1,
            "bounding_box": [*corner.tolist(), *(corner + sides).tolist()],
            "landmarks": [],
            "segmentation": [],
            **{name: int(rng.integers(1, 4)) for name in LEVELS},
        },
    }


if __name__ == "__main__":
    run(main)
