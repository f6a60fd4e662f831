"""Losses as pure functions of arrays; `total.py` alone applies their weights."""

import dataclasses
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from capret_jax.losses.memory import Memory

# name -> (sum, count): both are added over steps, and divided only when written.
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Loss(NamedTuple):
    """One term of the training objective.

    Attributes:
        value: () float32, the mean over `count` examples.
        count: () float32, number of examples that contributed.
        metrics: further quantities to log, name -> (sum, count).
    """

    value: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which has no use here
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class StepContext:
    """Mesh, PRNG key and part of the batch that one evaluation of the losses is for.

    Attributes:
        mesh: devices that the batch is sharded over.
        key: PRNG key of the step.
        part: index of the part of the batch that the model computes, from 0.
        parts: number of equal parts that the global batch is computed in, one after the other
            (`ExperimentConfig.accumulation`).
        memory: embeddings of earlier batches; None without one.
    """

    mesh: Mesh
    key: jax.Array
    part: jax.Array | int = 0
    parts: int = 1
    memory: Memory | None = None
