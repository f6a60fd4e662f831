"""Losses as pure functions of arrays. Weights are applied once, in `total.py`."""

from typing import NamedTuple

import jax

# name -> (sum, count): merged over steps by adding both, divided only when shown.
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Loss(NamedTuple):
    """A term of the training objective.

    Attributes:
        value: () float32, the mean over `count` examples.
        count: () float32, how many examples contributed.
        metrics: what else is worth watching, as (sum, count) pairs.
    """

    value: jax.Array
    count: jax.Array  # type: ignore[assignment]  # a tuple method nobody calls
    metrics: Metrics
