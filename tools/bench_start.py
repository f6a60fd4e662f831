"""Measures how long a run on many photographs takes to its first step, and its memory.

    python tools/bench_start.py [--photographs=200000] [--folder=/tmp]

A prepared dataset in the real layout is made from a few photographs, 30 kB each: 6 GB for 200,000.
The demo's model then trains for two steps in fresh processes:

1. once to compile, which is not counted;
2. first start, with the step compiled;
3. second start: the same command, in another workdir;
4. resuming: from the first step of the second start.

Each figure is of a whole process, from its start to its end, checkpoints included. The file
system's cache is as the operating system has it.
"""

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from PIL import Image
from tqdm import tqdm

from capret_jax.command_line import run
from capret_jax.data import schema
from capret_jax.data.items import load_items
from capret_jax.data.preparation import REPORT, VERSION, write_metadata
from capret_jax.data.record_shards import NAME, file_template
from capret_jax.data.records import Records

ROOT = pathlib.Path(__file__).parent.parent
_PER_SHARD = 2000
# Different photographs, and photographs of an identity, as many of the shop as of consumers.
_PHOTOGRAPHS, _OF_IDENTITY = 64, 8
_VALIDATION = 256
_STEPS = 2

_COUNT = flags.DEFINE_integer("photographs", 200_000, "Photographs of the training split.", 2000)
_FOLDER = flags.DEFINE_string("folder", None, "Folder for the files; the system's by default.")


def main(argv: list[str]) -> None:
    """Prints seconds and peak memory of each start."""
    del argv
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
        root = pathlib.Path(folder)
        _prepare(root / "prepared" / NAME / VERSION)
        _train(root, "compiling")
        _report("first start", *_train(root, "first"))
        _report("second start", *_train(root, "second"))
        shutil.rmtree(root / "second" / "checkpoints" / str(_STEPS))
        _report("resuming", *_train(root, "second"))


def _report(name: str, seconds: float, peak: int) -> None:
    print(f"{name:14}{seconds:7.1f} s{peak / 1e9:7.2f} GB", flush=True)


def _train(root: pathlib.Path, workdir: str) -> tuple[float, int]:
    """Trains in a process; returns its seconds, and its peak resident memory in bytes."""
    settings = {
        "mode": "train",
        "data.name": NAME,
        "data.prepared_dir": root / "prepared",
        "loop.steps": _STEPS,
        "loop.checkpoint_every": 1,
        "optimizer.warmup_steps": 0,
    }
    command = [sys.executable, "-m", "capret_jax.main", "--config=configs/demo.py"]
    command += [f"--workdir={root / workdir}"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(map(str, command))} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def _prepare(folder: pathlib.Path) -> None:
    """Writes a prepared dataset as `prepare_deepfashion2` does, without reading a raw one."""
    folder.mkdir(parents=True)
    jpegs = [_photograph(np.random.default_rng(i)) for i in range(_PHOTOGRAPHS)]
    splits = [
        _write_split(folder, split, count, jpegs)
        for split, count in (("train", _COUNT.value), ("validation", _VALIDATION))
    ]
    write_metadata(folder, splits)
    (folder / REPORT).write_text(json.dumps({"source": "", "splits": {}}))
    builder, start = tfds.builder_from_directory(folder), time.perf_counter()
    for split in builder.info.splits:
        load_items(Records(builder, split))  # as the preparation does
    print(f"item tables   {time.perf_counter() - start:7.1f} s", flush=True)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{_COUNT.value} photographs, {size / 1e9:.1f} GB", flush=True)


def _write_split(
    folder: pathlib.Path, split: str, count: int, jpegs: list[bytes]
) -> tfds.core.SplitInfo:
    features, template = schema.features(outlines=True), file_template(folder, split)
    starts = range(0, count, _PER_SHARD)
    lengths = [min(_PER_SHARD, count - start) for start in starts]

    def examples(start: int, length: int) -> Iterator[tuple[int, bytes]]:
        for number in range(start, start + length):
            record = _record(number, jpegs[number % len(jpegs)])
            yield number, features.serialize_example(features.encode_example(record))

    written = 0
    places = enumerate(zip(starts, lengths, strict=True))
    for i, (start, length) in tqdm(places, f"writing {split}", len(starts), leave=False):
        path = template.sharded_filepath(shard_index=i, num_shards=len(starts))
        tfds.core.file_adapters.ArrayRecordFileAdapter.write_examples(path, examples(start, length))
        written += pathlib.Path(path).stat().st_size
    return tfds.core.SplitInfo(
        name=split, shard_lengths=lengths, num_bytes=written, filename_template=template
    )


def _record(number: int, jpeg: bytes) -> dict:
    """Makes a record of two items, each of an identity that shop and consumers photographed."""
    rng = np.random.default_rng(number)
    return {
        "image": io.BytesIO(jpeg),
        "image_id": number + 1,
        "source": "shop" if number % 2 else "user",
        "pair_id": number // _OF_IDENTITY + 1,
        "items": [
            {
                "number": style,
                "style": style,
                "bounding_box": np.array([40, 40, 300, 400], np.float32),
                "category_id": int(rng.integers(1, 14)),
                **{name: int(rng.integers(1, 4)) for name in schema.LEVELS},
                "outline": "[]",
            }
            for style in (1, 2)
        ],
    }


def _photograph(rng: np.random.Generator) -> bytes:
    noise = cv2.resize(rng.integers(0, 256, (60, 45, 3), np.uint8), (360, 480))
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


if __name__ == "__main__":
    run(main)
