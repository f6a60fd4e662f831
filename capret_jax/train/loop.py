"""The training loop: reads batches, steps, logs, saves and evaluates."""

import dataclasses
import time

import grain
import jax
from jax.sharding import Mesh
from tqdm import tqdm

from capret_jax.checkpoints.training import Checkpoints
from capret_jax.config import LoopConfig
from capret_jax.train.evaluator import Evaluator
from capret_jax.train.metrics import MetricsWriter, check_finite, merge
from capret_jax.train.placed_batches import PlacedBatches
from capret_jax.train.preemption import PreemptionSignal
from capret_jax.train.state import TrainState
from capret_jax.train.step import StepFunction


@dataclasses.dataclass(frozen=True)
class LoopServices:
    """Objects that the training loop calls.

    Attributes:
        step: the jitted training step, from `make_step`.
        checkpoints: storage of the states.
        metadata: JSON content saved with each checkpoint, see `Checkpoints.save`.
        writer: writer of the training curve.
        preemption: the active handler of SIGTERM. It is checked after every step.
        evaluator: evaluator that is run every `LoopConfig.evaluate_every` steps and whose metrics
            are logged; None for no evaluation.
    """

    step: StepFunction
    checkpoints: Checkpoints
    metadata: dict
    writer: MetricsWriter
    preemption: PreemptionSignal
    evaluator: Evaluator | None = None


def run_loop(
    state: TrainState,
    iterator: grain.DatasetIterator,
    config: LoopConfig,
    mesh: Mesh,
    services: LoopServices,
) -> TrainState:
    """Trains from `state.step` to `config.steps`, or until the job is preempted.

    Args:
        state: initial state; its buffers are donated to the first step.
        iterator: this process's part of the batches, positioned at `state.step`.
        config: number of steps, and how often to log, save and evaluate.
        mesh: mesh that the state is sharded over.
        services: the step, checkpoints, writer, signal handler and evaluator.

    Returns:
        The state after the last step, which is saved.

    Raises:
        FloatingPointError: a loss or the gradient is not finite; that state is not saved.
    """
    start, batches = int(state.step), PlacedBatches(iterator, mesh)
    pending, clock = [], time.perf_counter()
    silent = jax.process_index() != 0
    with tqdm(
        total=config.steps, initial=start, desc="training", unit="step", disable=silent
    ) as progress:
        progress.set_postfix_str("compiling")
        for step in range(start + 1, config.steps + 1):
            batch = next(batches)
            state, metrics = services.step(state, batch)
            batches.fill()  # while the step runs
            pending.append(metrics)
            progress.update()
            logging = step % config.log_every == 0 or step == start + 1
            stopping = services.preemption.stops_after(step)
            last = step == config.steps
            evaluating = not stopping and _evaluates(step, config)
            evaluator = services.evaluator if evaluating else None
            saving = stopping or last or step % config.checkpoint_every == 0
            saving = saving or (evaluator is not None and bool(config.keep_best))
            if saving or logging:
                merged = merge(pending)
                check_finite(merged, step)
                now = time.perf_counter()
                merged["images_per_second"] = len(pending) * batch.images / (now - clock)
                progress.set_postfix_str(_postfix(merged))
                services.writer.write(step, merged)
                pending, clock = [], now
            if stopping:
                services.checkpoints.save(step, state, batches, services.metadata)
                break
            score = None
            if evaluator is not None:
                evaluated = evaluator.run(state)
                services.writer.write(step, evaluated)
                score = _score(evaluated, config.keep_best) if config.keep_best else None
                clock = time.perf_counter()
            if saving:
                services.checkpoints.save(step, state, batches, services.metadata, score)
    return state


def _evaluates(step: int, config: LoopConfig) -> bool:
    """Returns True for steps to evaluate; the last one is among them if the best is kept."""
    every = config.evaluate_every
    return bool(every) and (step % every == 0 or (bool(config.keep_best) and step == config.steps))


def _score(metrics: dict, name: str) -> float:
    """Returns the metric of a name, whatever evaluator gave it: "retrieval/mAP" for "mAP"."""
    return next(value for key, value in metrics.items() if key.split("/")[-1] == name)


def _postfix(metrics):
    return f"loss {metrics['loss']:.3f}, {metrics['images_per_second']:.0f} img/s"
