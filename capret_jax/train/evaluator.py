"""The protocol between training and evaluation."""

from typing import Any, Protocol

from capret_jax.train.state import TrainState


class Evaluator(Protocol):
    """A measurement of a state, ignorant of the loop that calls it."""

    def run(self, state: TrainState) -> dict[str, Any]:
        """Measures the state's model; every process takes part, and gets the same metrics."""
