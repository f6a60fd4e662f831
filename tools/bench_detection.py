"""Photographs a second of detection by phrases and by writing locations, in one run.

    python tools/bench_detection.py [--size=demo|base] [--photographs=16] [--rounds=3]

Random weights and photographs of noise: neither changes the time. With the default settings a
photograph is seen 27 times by phrases, and once by locations. The ratio is of the medians of the
rounds, which take turns.
"""

import dataclasses
import pathlib
import runpy
import tempfile
import time

import jax
import numpy as np
from absl import app, flags

from capret_jax.config import (
    SIZES,
    ComputeConfig,
    DetectionConfig,
    MeshConfig,
    ModelConfig,
    ViewConfig,
    from_config_dict,
)
from capret_jax.data.images import Photograph
from capret_jax.data.tokenizer import CaptionEncoder, build_vocabulary, load_tokenizer
from capret_jax.detection.detector import DetectorModel
from capret_jax.detection.detectors import make_detector
from capret_jax.detection.phrases import PHRASES
from capret_jax.distributed.mesh import make_mesh
from capret_jax.models.x2vlm import init_params

_SIZE = flags.DEFINE_enum("size", "demo", ["demo", "base"], "The demo's model, or base at 384 px.")
_PHOTOGRAPHS = flags.DEFINE_integer("photographs", 16, "Photographs of a round.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of each detector.", 1)
_DTYPE = flags.DEFINE_string("dtype", "float32", "Precision of matrix products.")
_VIEW = flags.DEFINE_enum(
    "view", "crop", ["crop", "region"], "Of items; regions are embedded, too."
)
_KINDS = flags.DEFINE_list("kinds", ["phrases", "locations"], "Detectors to compare.")

_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# Pixels of a photograph.
_SIDES = (640, 480)


def main(argv: list[str]) -> None:
    """Prints a line for each detector, and the ratios to the first one."""
    del argv
    model, rng = _model(), np.random.default_rng(0)
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    photographs = [
        Photograph.from_pixels(rng.integers(0, 256, (*_SIDES, 3), np.uint8))
        for _ in range(_PHOTOGRAPHS.value)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "vocab.txt"
        build_vocabulary(PHRASES, path, 200)
        encode = CaptionEncoder(load_tokenizer(str(path)), 12)
    device = make_mesh(MeshConfig(), jax.devices()[:1])
    compute = ComputeConfig(_DTYPE.value).on(device.devices.flat[0].platform)
    view = ViewConfig(_VIEW.value)
    described = DetectorModel(model, params, encode, device, view, compute)
    config = DetectionConfig(batch_size=min(16, _PHOTOGRAPHS.value))
    detectors = {kind: make_detector(kind, described, config) for kind in _KINDS.value}
    seconds: dict[str, list[float]] = {kind: [] for kind in detectors}
    for detector in detectors.values():
        detector(photographs)  # compiles
    for _ in range(_ROUNDS.value):
        for kind, detector in detectors.items():
            start = time.perf_counter()
            detector(photographs)
            seconds[kind].append(time.perf_counter() - start)
    for kind, taken in seconds.items():
        rates = len(photographs) / np.array(taken)
        print(
            f"{kind:10} {np.median(rates):8.3f} photographs/s ({rates.min():.3f} - "
            f"{rates.max():.3f})"
        )
    first, *others = seconds
    for other in others:
        ratio = np.median(seconds[first]) / np.median(seconds[other])
        print(f"{other} are {ratio:.1f} times as fast as {first}")


def _model() -> ModelConfig:
    if _SIZE.value == "base":
        return dataclasses.replace(SIZES["base"], image_size=384, location_layers=6)
    config = runpy.run_path(str(_CONFIGS / "demo.py"))["get_config"]()
    return from_config_dict(config).model


if __name__ == "__main__":
    app.run(main)
