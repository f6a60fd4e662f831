"""Where the time of a run goes: input, training step and embedding, each on its own.

    python tools/bench_step.py --config=configs/demo.py

Compilation is timed apart. Figures are images per second of this machine, and the FLOPs that the
model's mathematics needs for them as a fraction of what a plain matrix product reaches here (the
model FLOPs utilisation, with a measured peak). The input is measured alone and so has all cores,
which in training it shares with the step.
"""

import os
import pathlib
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
from absl import flags, logging
from ml_collections import config_flags

from capret_jax.command_line import load_config, run
from capret_jax.config import from_config_dict
from capret_jax.distributed.mesh import to_global
from capret_jax.roofline.flops import ideal_embedding_flops, ideal_step_flops
from capret_jax.roofline.peak import matmul_peak
from capret_jax.train.experiment import Experiment

_CONFIG = config_flags.DEFINE_config_file("config", "configs/demo.py", "The experiment.")
_BATCHES = flags.DEFINE_integer("batches", 20, "Batches to time.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Prints a table of images per second."""
    del argv
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as workdir:
        experiment = Experiment(from_config_dict(load_config(_CONFIG)), pathlib.Path(workdir))
        peak = matmul_peak(experiment.mesh, experiment.config.compute.dtype)
        print(f"{'matrix product':12}{peak / 1e9:10.0f} GFLOP/s")
        _bench_input(experiment)
        _bench_step(experiment, peak)
        _bench_embedding(experiment, peak)


def _bench_input(experiment: Experiment) -> None:
    iterator = experiment.training_iterator()
    next(iterator)
    _show("input", experiment.config.batch_size, _seconds(lambda: next(iterator)))
    iterator.close()


def _bench_step(experiment: Experiment, peak: float) -> None:
    config = experiment.config
    iterator = experiment.training_iterator()
    batch = to_global(experiment.mesh, next(iterator))
    iterator.close()
    step, state = experiment.make_step(), experiment.fresh_state()
    classes = state.params["arcface"].shape[0]

    def train():
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    _show_compilation("step", train)
    items, tokens = batch.token_ids.shape
    images = len(batch.image)
    flops = ideal_step_flops(config.model, config.loss, images, items, tokens, classes)
    _show("step", images, _seconds(train), flops / peak)


def _bench_embedding(experiment: Experiment, peak: float) -> None:
    params, pictures = experiment.fresh_state().params["model"], next(iter(experiment.views()))

    def embed():
        experiment.embedder.embed(params, pictures)

    _show_compilation("embedding", embed)
    images = len(pictures.image)
    flops = ideal_embedding_flops(experiment.config.model, images)
    _show("embedding", images, _seconds(embed), flops / peak)


def _seconds(function: Callable[[], object]) -> float:
    """Of one call, on average."""
    start = time.perf_counter()
    for _ in range(_BATCHES.value):
        function()
    return (time.perf_counter() - start) / _BATCHES.value


def _show(name: str, images: int, seconds: float, ideal: float | None = None) -> None:
    """`ideal` is the time in seconds that the matrix products alone would take."""
    share = "" if ideal is None else f"{ideal / seconds:8.1%} of the matrix product's rate"
    print(f"{name:14}{images / seconds:8.0f} images/s{share}")


def _show_compilation(name: str, first_call: Callable[[], object]) -> None:
    start = time.perf_counter()
    first_call()
    print(f"{name:14}{time.perf_counter() - start:8.1f} s to compile and run once")


if __name__ == "__main__":
    run(main)
