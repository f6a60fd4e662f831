"""Evaluators of X2-VLM's tasks."""

from collections.abc import Callable
from typing import Any

from capret_jax.tasks.evaluators.captioning import CaptioningMeasurement
from capret_jax.tasks.evaluators.detection import DetectionMeasurement
from capret_jax.tasks.evaluators.grounding import GroundingMeasurement
from capret_jax.tasks.evaluators.inputs import EvaluationInputs, TaskResults
from capret_jax.tasks.evaluators.nlvr2 import Nlvr2Measurement
from capret_jax.tasks.evaluators.retrieval import RetrievalMeasurement
from capret_jax.tasks.evaluators.vqa import VqaMeasurement
from capret_jax.train.state import TrainState

__all__ = ["TaskEvaluator", "TaskResults", "EvaluationInputs", "make_evaluator"]

_MEASUREMENTS: dict[str, Callable[[EvaluationInputs], Callable[[dict], TaskResults]]] = {
    "retrieval": RetrievalMeasurement,
    "vqa": VqaMeasurement,
    "grounding": GroundingMeasurement,
    "captioning": CaptioningMeasurement,
    "detection": DetectionMeasurement,
    "nlvr2": Nlvr2Measurement,
}


class TaskEvaluator:
    """Measures models on the test file of a task (protocol `train.evaluator.Evaluator`)."""

    def __init__(self, run: EvaluationInputs):
        self._run, self._measure = run, _MEASUREMENTS[run.config.task.name](run)

    def run(self, state: TrainState) -> dict[str, Any]:
        """Returns the metrics of a state's model; every process has to call it."""
        return self.measure(state.model).metrics

    def measure(self, params: dict) -> TaskResults:
        """Measures a model; every process has to call it.

        Args:
            params: parameters of the model, sharded over the mesh.

        Returns:
            The metrics of the task, and "left_out", the number of annotated examples that were not
            evaluated.
        """
        metrics, files = self._measure(params)
        return TaskResults({**metrics, "left_out": self._run.test.left_out}, files)


def make_evaluator(run: EvaluationInputs) -> TaskEvaluator:
    """Makes the evaluator of `config.task.name`.

    Raises:
        InputError: the test file cannot be evaluated with these settings.
    """
    return TaskEvaluator(run)
