"""Conversations and answers per second, in batches and one at a time.

    python tools/bench_captions.py --items=1000 --json=OUT

The script asks. "conversation" is everything: reading pictures, seeing, answering, and keeping each
turn on disk; "answering" is the model's part alone, the same questions about pictures that it has
seen. `--model` is a workdir or a converted VQA checkpoint; without it the small model of
tools/collect_captions.py.
"""

import json
import pathlib
import tempfile
import time

import numpy as np
from absl import flags

from capret_jax.captioning.collection import CollectConfig, collect_captions
from capret_jax.captioning.stand_in import stand_in
from capret_jax.captioning.vqa_answerer import VqaAnswerer, VqaQuery
from capret_jax.checkpoints.loading import load_model, load_setup
from capret_jax.command_line import run
from capret_jax.config import DataConfig
from capret_jax.data.tokenizer import CaptionEncoder, load_tokenizer
from capret_jax.data.vqa import SYNTHETIC_QUESTIONS

_MODEL = flags.DEFINE_string("model", "", "Who answers.")
_ITEMS = flags.DEFINE_integer("items", 1000, "Of the synthetic dataset.", lower_bound=1)
_ALONE = flags.DEFINE_integer("alone", 200, "Of them one at a time.", lower_bound=1)
_JSON = flags.DEFINE_string("json", "", "File for the numbers.")

# in flight, pictures and questions of a call
_WAYS = {"batched": (512, 64), "one at a time": (1, 1)}


def main(argv: list[str]) -> None:
    """Measures both, prints and saves."""
    del argv
    model = _MODEL.value or stand_in()
    found = {
        "conversation": _compared(lambda *way: _converse(model, *way), "items_per_second"),
        "answering": _compared(lambda *way: _answer(model, *way), "questions_per_second"),
    }
    print(json.dumps(found, indent=2))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=2) + "\n")


def _compared(measure, unit: str) -> dict:
    rates = {name: measure(*way) for name, way in _WAYS.items()}
    return {unit: rates, "speedup": rates["batched"] / rates["one at a time"]}


def _items(batch: int) -> int:
    return _ITEMS.value if batch > 1 else min(_ALONE.value, _ITEMS.value)


def _converse(model: str, in_flight: int, batch: int) -> float:
    config = CollectConfig(limit=_items(batch), in_flight=in_flight, batch_size=batch)
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "captions.jsonl"
        return collect_captions(DataConfig(), model, out, config)["items_per_second"]


def _answer(folder: str, in_flight: int, batch: int) -> float:
    model, setup = load_model(folder), load_setup(folder)
    encode = CaptionEncoder(load_tokenizer(setup.tokenizer), setup.max_tokens)
    answerer = VqaAnswerer(model.config, model.params, encode, batch)
    size, count = model.config.image_size, _items(batch)
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    asked = [
        VqaQuery(s, q.text, q.answers) for q in SYNTHETIC_QUESTIONS for s in answerer.look(images)
    ]
    answerer(asked[:: max(count // 2, 1)])  # compiles every question
    start = time.perf_counter()
    for first in range(0, len(asked), in_flight):
        answerer(asked[first : first + in_flight])
    return len(asked) / (time.perf_counter() - start)


if __name__ == "__main__":
    run(main)
