"""Evaluator protocol, so that training does not import the evaluators."""

from typing import Any, Protocol

from capret_jax.train.state import TrainState


class Evaluator(Protocol):
    """Computes metrics of a training state, independently of the loop that calls it."""

    def run(self, state: TrainState) -> dict[str, Any]:
        """Returns metrics of the state's model, the same on every process; all have to call it.

        In training their names are "<evaluator>/<metric>", and each is one number.
        """
