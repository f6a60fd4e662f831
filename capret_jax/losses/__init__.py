"""Losses as pure functions of arrays. Weights are applied once, in `total.py`."""

import dataclasses
from typing import NamedTuple

import jax
from jax.sharding import Mesh

# name -> (sum, count): merged over steps by adding both, divided only when shown.
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Loss(NamedTuple):
    """A term of the training objective.

    Attributes:
        value: () float32, the mean over `count` examples.
        count: () float32, number of examples that contributed.
        metrics: further quantities to log, as (sum, count) pairs.
    """

    value: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which has no use here
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class StepContext:
    """The mesh, the randomness and the part of the batch of one training step.

    Attributes:
        mesh: devices that the batch is sharded over.
        key: the step's PRNG key.
        part, parts: index and number of the parts that the global batch is computed in, one after
            the other, when gradients are accumulated.
    """

    mesh: Mesh
    key: jax.Array
    part: jax.Array | int = 0
    parts: int = 1
