"""The training loop: read, step, log, save. It owns no model code."""

import time
from collections.abc import Callable

import grain
import jax
from jax.sharding import Mesh
from tqdm import tqdm

from capret_jax.checkpoints.training import Checkpoints
from capret_jax.config import LoopConfig
from capret_jax.distributed.mesh import to_global
from capret_jax.train.metrics import MetricsWriter, check_finite, merge
from capret_jax.train.preemption import PreemptionSignal
from capret_jax.train.state import TrainState
from capret_jax.train.step import StepFunction


def train(
    state: TrainState,
    step_function: StepFunction,
    iterator: grain.DatasetIterator,
    checkpoints: Checkpoints,
    config: LoopConfig,
    metadata: dict,
    mesh: Mesh,
    writer: MetricsWriter,
    interruption: PreemptionSignal,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
) -> TrainState:
    """Trains from `state.step` to `config.steps`, or until it is interrupted.

    Args:
        state: where to start; its buffers are donated to the first step.
        step_function: from `make_step`.
        iterator: this process's batches, positioned at `state.step`.
        checkpoints: where to save.
        config: how long and how often.
        metadata: stored with each checkpoint, see `Checkpoints.save`.
        mesh: of the state.
        writer: of the training curve.
        interruption: open; asked after every step, by several processes at points of the curve.
        evaluate: called every `config.evaluate_every` steps; what it returns is logged.

    Returns:
        The state after the last step done, saved.

    Raises:
        FloatingPointError: a loss is not finite; nothing is saved after it.
    """
    start = int(state.step)
    pending, clock = [], time.perf_counter()
    with tqdm(
        total=config.steps, initial=start, desc="training", unit="step", disable=_silent()
    ) as progress:
        progress.set_postfix_str("compiling")
        for step in range(start + 1, config.steps + 1):
            batch = to_global(mesh, next(iterator))
            state, metrics = step_function(state, batch)
            pending.append(metrics)
            progress.update()
            logging = step % config.log_every == 0 or step == start + 1
            stopping = interruption.agreed(logging)
            saving = stopping or step % config.checkpoint_every == 0 or step == config.steps
            if saving or logging:
                merged = merge(pending)
                check_finite(merged, step)
                now = time.perf_counter()
                merged["images_per_second"] = len(pending) * len(batch.image) / (now - clock)
                progress.set_postfix_str(_postfix(merged))
                writer.write(step, merged)
                pending, clock = [], now
            if stopping:
                checkpoints.save(step, state, iterator, metadata)
                break
            if evaluate and config.evaluate_every and step % config.evaluate_every == 0:
                writer.write(step, evaluate(state))
                clock = time.perf_counter()
            if saving:
                checkpoints.save(step, state, iterator, metadata)
    return state


def _silent() -> bool:
    return jax.process_index() != 0


def _postfix(metrics):
    return f"loss {metrics['loss']:.3f}, {metrics['images_per_second']:.0f} img/s"
