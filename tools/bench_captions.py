"""Conversations and answers per second, in batches and one at a time.

    python tools/bench_captions.py --items=1000 --json=OUT

The questioner is the script. "conversation" includes everything: reading and encoding the images,
answering, and writing each turn to disk. "answering" is the model's part alone: the same questions
about images that are encoded already. `--model` is a workdir or a converted VQA checkpoint; without
it the small model of tools/collect_captions.py.
"""

import json
import pathlib
import tempfile
import time
from collections.abc import Callable

import numpy as np
from absl import flags

from capret_jax.captioning.batched_model import batch_model
from capret_jax.captioning.collection import collect_captions
from capret_jax.captioning.config import CollectConfig
from capret_jax.captioning.demo_vqa_model import ensure_demo_vqa_model
from capret_jax.captioning.vqa_answerer import VqaAnswerer, VqaQuery
from capret_jax.checkpoints.loading import ModelFolder
from capret_jax.command_line import run
from capret_jax.config import DataConfig
from capret_jax.data.vqa import SYNTHETIC_QUESTIONS

_MODEL = flags.DEFINE_string("model", "", "Folder of the VQA model.")
_ITEMS = flags.DEFINE_integer("items", 1000, "Items of the synthetic dataset.", lower_bound=1)
_ALONE = flags.DEFINE_integer("alone", 200, "Items of these, one at a time.", lower_bound=1)
_JSON = flags.DEFINE_string("json", "", "File for the results.")

# name -> items in flight, batch size
_MODES = {"batched": (512, 64), "one at a time": (1, 1)}


def main(argv: list[str]) -> None:
    """Measures both rates, prints and saves them."""
    del argv
    folder = _MODEL.value or ensure_demo_vqa_model()
    rates = {
        "conversation": _compare(lambda *mode: _converse(folder, *mode), "items_per_second"),
        "answering": _compare(lambda *mode: _answer(folder, *mode), "questions_per_second"),
    }
    print(json.dumps(rates, indent=2))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(rates, indent=2) + "\n")


def _compare(measure: Callable[[int, int], float], unit: str) -> dict:
    """Measures the rates of each mode, and their ratio."""
    rates = {name: measure(*mode) for name, mode in _MODES.items()}
    return {unit: rates, "speedup": rates["batched"] / rates["one at a time"]}


def _count_items(batch_size: int) -> int:
    return _ITEMS.value if batch_size > 1 else min(_ALONE.value, _ITEMS.value)


def _converse(folder: str, in_flight: int, batch_size: int) -> float:
    """Measures items per second of whole conversations."""
    limit = _count_items(batch_size)
    config = CollectConfig(limit=limit, in_flight=in_flight, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as temporary:
        out = pathlib.Path(temporary) / "captions.jsonl"
        return collect_captions(DataConfig(), folder, out, config)["items_per_second"]


def _answer(folder: str, in_flight: int, batch_size: int) -> float:
    """Measures answers per second about encoded images."""
    opened = ModelFolder(folder)
    model = opened.load_model()
    answerer = VqaAnswerer(batch_model(model, opened.setup(), batch_size))
    size, count = model.config.image_size, _count_items(batch_size)
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    states = answerer.encode_images(images)
    queries = [VqaQuery(s, q.text, q.answers) for q in SYNTHETIC_QUESTIONS for s in states]
    answerer(queries[:: max(count // 2, 1)])  # compiles every question
    start = time.perf_counter()
    for first in range(0, len(queries), in_flight):
        answerer(queries[first : first + in_flight])
    return len(queries) / (time.perf_counter() - start)


if __name__ == "__main__":
    run(main)
