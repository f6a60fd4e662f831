"""Benchmark of the input pipeline, the training step and the embedding, each measured alone.

    python tools/bench_step.py --config=configs/demo.py

Compilation is timed separately. Figures are images per second on this machine, and the model FLOPs
utilisation: the FLOPs that the model needs for them as a fraction of the measured peak rate of a
matrix product. Measured alone, the input pipeline has all cores, which it shares with the step in
training.
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
from capret_jax.distributed.batch_share import to_global
from capret_jax.evaluation.context import EvaluationContext
from capret_jax.evaluation.photograph_reader import PhotographReader
from capret_jax.roofline.flops import ideal_embedding_flops, ideal_step_flops
from capret_jax.roofline.peak import matmul_peak
from capret_jax.train.run import Run
from capret_jax.train.step import make_step

_CONFIG = config_flags.DEFINE_config_file("config", "configs/demo.py", "Config file.")
_BATCHES = flags.DEFINE_integer("batches", 20, "Number of batches to time.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Prints a table of images per second."""
    del argv
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as workdir:
        bench = Run(from_config_dict(load_config(_CONFIG)), pathlib.Path(workdir))
        peak = matmul_peak(bench.mesh, bench.config.compute.dtype)
        print(f"{'matrix product':12}{peak / 1e9:10.0f} GFLOP/s")
        _bench_input(bench)
        _bench_step(bench, peak)
        _bench_embedding(bench, peak)


def _bench_input(bench: Run) -> None:
    iterator = bench.training_batches()
    next(iterator)
    _show("input", bench.config.batch_size, _seconds(lambda: next(iterator)))
    iterator.close()


def _bench_step(bench: Run, peak: float) -> None:
    iterator = bench.training_batches()
    batch = to_global(bench.mesh, next(iterator))
    iterator.close()
    step, state = make_step(bench.setup), bench.fresh_state()
    classes = state.params["arcface"].shape[0]

    def train():
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    _show_compilation("step", train)
    flops = ideal_step_flops(bench.config, classes)
    _show("step", len(batch.image), _seconds(train), flops / peak)


def _bench_embedding(bench: Run, peak: float) -> None:
    context, state = EvaluationContext(bench), bench.fresh_state()
    reader = PhotographReader(bench, bench.dataset.validation)
    pictures, _ = next(reader.batches())

    def embed():
        context.embedder.embed(state.model, pictures)

    _show_compilation("embedding", embed)
    images = len(pictures.image)
    flops = ideal_embedding_flops(bench.config.model, images)
    _show("embedding", images, _seconds(embed), flops / peak)


def _seconds(function: Callable[[], object]) -> float:
    """Returns the mean seconds of a call."""
    start = time.perf_counter()
    for _ in range(_BATCHES.value):
        function()
    return (time.perf_counter() - start) / _BATCHES.value


def _show(name: str, images: int, seconds: float, ideal: float | None = None) -> None:
    """Prints a rate; `ideal` is the time in seconds of the matrix products at the peak rate."""
    share = "" if ideal is None else f"{ideal / seconds:8.1%} of the matrix product's rate"
    print(f"{name:14}{images / seconds:8.0f} images/s{share}")


def _show_compilation(name: str, first_call: Callable[[], object]) -> None:
    start = time.perf_counter()
    first_call()
    print(f"{name:14}{time.perf_counter() - start:8.1f} s to compile and run once")


if __name__ == "__main__":
    run(main)
