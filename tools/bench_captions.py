"""Conversations per second: questions answered in batches, and one at a time.

    python tools/bench_captions.py --items=1000 --json=OUT

The script asks, so what is measured is reading, seeing and answering. `--model` is a workdir or a
converted VQA checkpoint; without it the small model of tools/collect_captions.py.
"""

import json
import pathlib
import tempfile

from absl import flags
from stand_in import stand_in

from capret_jax.collecting import CollectConfig, collect_captions
from capret_jax.command_line import run
from capret_jax.data.dataset import DataConfig

_MODEL = flags.DEFINE_string("model", "", "Who answers.")
_ITEMS = flags.DEFINE_integer("items", 1000, "Of the synthetic dataset.", lower_bound=1)
_ALONE = flags.DEFINE_integer("alone", 200, "Of them one at a time.", lower_bound=1)
_JSON = flags.DEFINE_string("json", "", "File for the numbers.")

# in flight, pictures and questions of a call
_WAYS = {"batched": (512, 64), "one at a time": (1, 1)}


def main(argv: list[str]) -> None:
    """Measures both, prints and saves."""
    del argv
    model, found = _MODEL.value or stand_in(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (in_flight, batch) in _WAYS.items():
            limit = _ITEMS.value if batch > 1 else min(_ALONE.value, _ITEMS.value)
            config = CollectConfig(limit=limit, in_flight=in_flight, batch_size=batch)
            out = pathlib.Path(folder) / f"{batch}.jsonl"
            took = collect_captions(DataConfig(), model, out, config)
            found[name] = {key: took[key] for key in ("items", "items_per_second", "questions")}
    found["speedup"] = (
        found["batched"]["items_per_second"] / found["one at a time"]["items_per_second"]
    )
    print(json.dumps(found, indent=2))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
