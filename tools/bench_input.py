"""Benchmarks the input pipeline: photographs of 300 to 1000 px in ArrayRecord -> training batches.

    python tools/bench_input.py [--size=384] [--threads=0,1,2] [--workers=1,2] [--augment]

Compares it with a plain Pillow loop (open, decode, resize, stack) over the same files, in images
per second of wall-clock time and of CPU time (the rate of one core). With --augment, both change
views in all ways that `data.augment` knows. Workers read in one thread each; their time is their
own, so that they have a rate of wall-clock time alone. Then measures one thread's time by stage.

One process can never exceed 1 / (seconds an image holds the interpreter's lock), with any number of
threads. These seconds are one thread's CPU time outside of the decoder and of OpenCV, which release
the lock. NumPy releases it, too, in operations on large arrays, so that the ceiling is a low
estimate; CPU time hardly depends on what else runs. Amdahl's law gives another estimate, from the
rates of 1 and 2 threads, which is only good on an idle machine. The
photographs are noise with the spectrum of natural images and about as many bytes per pixel as
DeepFashion2's.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from unittest import mock

import cv2
import numpy as np
import simplejpeg
from absl import flags
from PIL import Image
from pillow_loop import pillow_loop
from tqdm import tqdm

from capret_jax.command_line import run
from capret_jax.config import (
    SIZES,
    AugmentConfig,
    CaptionConfig,
    DataConfig,
    ExperimentConfig,
    LoopConfig,
    LossConfig,
    ReadConfig,
    ViewConfig,
)
from capret_jax.config.views import VIEWS
from capret_jax.data.batch_iterator import BatchIterator
from capret_jax.data.captions import TrainingCaptions
from capret_jax.data.images import Photograph
from capret_jax.data.masking import MaskedCaptions
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
_WORKERS = flags.DEFINE_list("workers", ["1", "2"], "Numbers of worker processes.")
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
# Functions that release the interpreter's lock while they work.
_RELEASING = (
    (simplejpeg, "decode_jpeg"),
    *(
        (cv2, name)
        for name in (
            "resize",
            "sepFilter2D",
            "warpPerspective",
            "LUT",
            "GaussianBlur",
            "transform",
        )
    ),
)
_LOCK_BATCHES = 8
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
        plain = pillow_loop(files, _SIZE.value, _BATCH.value, _ALL if _AUGMENT.value else None)
        variants = {"Pillow loop": plain}
        for threads in map(int, _THREADS.value):
            variants[f"pipeline, {threads} threads"] = make.batches(threads)
        with contextlib.ExitStack() as stack:
            for workers in map(int, _WORKERS.value):
                iterator = stack.enter_context(contextlib.closing(make.iterator(1, workers)))
                variants[f"pipeline, {workers} workers"] = iterator.__next__
            rates = _rates(variants)
        ceilings = _ceilings(make.batches(0), rates)
        stages = make.stages()
    _report(rates, ceilings, stages)


class _Pipeline:
    """The training pipeline of a dataset."""

    def __init__(self, dataset: Dataset, folder: pathlib.Path):
        self._split = dataset.train
        self._captions = TrainingCaptions(CaptionConfig(), self._split.items)
        build_vocabulary(self._captions, folder / "vocab.txt", 2000)
        self._encoder = CaptionEncoder(load_tokenizer(str(folder / "vocab.txt")), 40)
        self._masker = MaskedCaptions(self._encoder, LossConfig())

    def batches(self, threads: int) -> Callable[[], object]:
        """Returns a function that reads the next batch."""
        return self.iterator(threads, 0).__next__

    def iterator(self, threads: int, workers: int) -> BatchIterator:
        """Makes the iterator of batches."""
        config = ExperimentConfig(
            batch_size=_BATCH.value,
            model=dataclasses.replace(SIZES["base"], image_size=_SIZE.value),
            data=DataConfig(
                views_per_identity=2,
                view=ViewConfig(_VIEW.value),
                augment=_augmentation(),
                read=ReadConfig(threads, prefetch=2, workers=workers),
            ),
            loop=LoopConfig(steps=10**6),
        )
        sampler = make_sampler(self._split.items, config)
        text = TrainingText(self._captions, self._encoder, self._masker)
        return training_iterator(self._split, sampler, text, config)

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
            self._masker(self._captions(row, rng), rng)

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
        | {
            "spread": float(np.ptp([rate["images_per_core_second"] for rate in rates])),
            "wall_spread": float(np.ptp([rate["images_per_second"] for rate in rates])),
        }
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


def _ceilings(batch: Callable[[], object], rates: dict) -> dict[str, float]:
    """Estimates the images per second that one process cannot exceed, see the module's docstring.

    Args:
        batch: reads the next batch in the calling thread.
        rates: rates of the variants.
    """
    held = [_seconds_of_lock(batch) for _ in range(_REPEATS.value)]
    ceilings = {name: 1 / f(held) for name, f in (("lock", np.median), ("lock, low", np.max))}
    one, two = (rates.get(f"pipeline, {n} threads", {}).get("images_per_second") for n in (1, 2))
    if one and two and two < 2 * one:
        # Time of one image = serial part + parallel part / threads.
        serial = 2 / two - 1 / one
        ceilings["Amdahl"] = 1 / serial
    return {name: float(rate) for name, rate in ceilings.items()}


def _seconds_of_lock(batch: Callable[[], object]) -> float:
    """Returns the CPU seconds of an image outside of the calls that release the lock."""
    released = 0.0

    def timed(function):
        def call(*arguments, **settings):
            nonlocal released
            start = time.thread_time()
            try:
                return function(*arguments, **settings)
            finally:
                released += time.thread_time() - start

        return call

    with contextlib.ExitStack() as stack:
        for module, name in _RELEASING:
            stack.enter_context(mock.patch.object(module, name, timed(getattr(module, name))))
        start = time.thread_time()
        for _ in range(_LOCK_BATCHES):
            batch()
        total = time.thread_time() - start
    return (total - released) / (_LOCK_BATCHES * _BATCH.value)


def _each(function: Callable, arguments) -> float:
    start = time.perf_counter()
    for argument in arguments:
        function(argument)
    return (time.perf_counter() - start) / len(arguments) * 1e3


def _report(rates: dict, ceilings: dict, stages: dict) -> None:
    plain = rates["Pillow loop"]["images_per_core_second"]
    print(f"{'':24}{'images/s':>10}{'spread':>10}{'per core':>10}{'spread':>10}")
    for name, rate in rates.items():
        print(f"{name:24}{rate['images_per_second']:10.0f}{rate['wall_spread']:10.0f}", end="")
        if name.endswith("workers"):  # their CPU time is not this process's
            print()
            continue
        ratio = rate["images_per_core_second"] / plain
        print(f"{rate['images_per_core_second']:10.0f}{rate['spread']:10.0f}{ratio:9.2f}x")
    for name, ceiling in ceilings.items():
        print(f"one process can never exceed ({name:9}){ceiling:8.0f} images/s")
    total = sum(stages.values())
    print("one thread, by stage:")
    for name, milliseconds in stages.items():
        print(f"    {name:24}{milliseconds:7.2f} ms{milliseconds / total:7.0%}")
    if _JSON.value:
        content = {"rates": rates, "ceilings": ceilings, "stages_ms": stages}
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
