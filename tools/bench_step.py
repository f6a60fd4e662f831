"""Where the time of a run goes: input, training step and embedding, each on its own.

    python tools/bench_step.py --config=configs/demo.py

Compilation is timed apart. Figures are images per second of this machine; the input is measured
alone and so has all cores, which in training it shares with the step.
"""

import os
import pathlib
import tempfile
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from capret_jax.config import from_config_dict
from capret_jax.experiment import Experiment
from capret_jax.mesh import to_global

_CONFIG = config_flags.DEFINE_config_file("config", "configs/demo.py", "The experiment.")
_BATCHES = flags.DEFINE_integer("batches", 20, "Batches to time.")


def main(argv: list[str]) -> None:
    """Prints a table of images per second."""
    del argv
    logging.set_verbosity(logging.WARNING)
    config = from_config_dict(_CONFIG.value)
    with tempfile.TemporaryDirectory() as workdir:
        experiment = Experiment(config, pathlib.Path(workdir))
        iterator = experiment.training_iterator()
        batch = next(iterator)
        count = _BATCHES.value * config.batch_size
        _show("input", count / _seconds(lambda: next(iterator), _BATCHES.value))
        iterator.close()

        step, state = experiment.make_step(), experiment.fresh_state()
        batch = to_global(experiment.mesh, batch)
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        print(f"{'step, compilation':22}{time.perf_counter() - start:10.1f} s")
        box = [state]

        def train():
            box[0], metrics = step(box[0], batch)
            jax.block_until_ready(metrics)

        _show("step", count / _seconds(train, _BATCHES.value))
        params, pictures = box[0].params["model"], next(iter(experiment.views()))
        start = time.perf_counter()
        experiment.embedder.embed(params, pictures)
        print(f"{'embedding, compilation':22}{time.perf_counter() - start:10.1f} s")
        seconds = _seconds(lambda: experiment.embedder.embed(params, pictures), _BATCHES.value)
        _show("embedding", _BATCHES.value * len(pictures.image) / seconds)


def _seconds(function, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        function()
    return time.perf_counter() - start


def _show(name: str, rate: float) -> None:
    print(f"{name:22}{rate:10.0f} images/s")


if __name__ == "__main__":
    app.run(main)
