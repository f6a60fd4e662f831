"""A task's metrics on the training curve and on the console."""

import pathlib
from typing import Any

from capret_jax.train.evaluator import Evaluator
from capret_jax.train.state import TrainState


class TaskCurve:
    """An evaluator whose metrics are named after their task, for the training curve."""

    def __init__(self, evaluator: Evaluator, task: str):
        """
        Args:
            evaluator: the evaluator of the task.
            task: `task.name`.
        """
        self._evaluator, self._task = evaluator, task

    def run(self, state: TrainState) -> dict[str, float]:
        """Returns "<task>/<metric>" for each metric; every process has to call it."""
        metrics = self._evaluator.run(state)
        return {f"{self._task}/{name}": value for name, value in metrics.items()}


def task_summary(metrics: dict[str, Any], folder: pathlib.Path) -> str:
    """Formats the metrics of an evaluation, one a line.

    Args:
        metrics: metrics by name; fractions as floats, counts as ints.
        folder: folder of the results.
    """
    lines = [
        f"{name:18}{value:.3f}" if isinstance(value, float) else f"{name:18}{value}"
        for name, value in metrics.items()
    ]
    return "\n".join(["", *lines, f"results: {folder}"])
