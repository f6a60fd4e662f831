"""The evaluators of a config, and the folder that their results are written to."""

import json
import shutil
from typing import Any

import numpy as np

from capret_jax.distributed.first_process import first_process_only
from capret_jax.evaluation.context import EvaluationContext
from capret_jax.evaluation.detection import DetectedBoxEvaluator, DetectionEvaluator
from capret_jax.evaluation.interpolation import InterpolationEvaluator
from capret_jax.evaluation.mesh_ranking import Ranking
from capret_jax.evaluation.report import ReportExamples, write_report
from capret_jax.evaluation.reranking import RerankingEvaluator
from capret_jax.evaluation.retrieval import BaselineEvaluator, RetrievalEvaluator
from capret_jax.evaluation.training_embeddings import TrainingEmbeddingsEvaluator
from capret_jax.train.evaluator import Evaluator
from capret_jax.train.run import Run
from capret_jax.train.state import TrainState

EVALUATION = "evaluation"


class EvaluationSuite:
    """The evaluators of a config; the constructor raises errors in the data.

    Attributes:
        folder: folder of the results.
        context: inputs that the evaluators share.
    """

    def __init__(self, run: Run, name: str = EVALUATION):
        """
        Args:
            run: the run whose states are evaluated.
            name: name of the folder of results in its workdir.

        Raises:
            InputError: the validation split, or a file of detections, cannot be evaluated.
        """
        self.folder, self.context = run.files.folder / name, EvaluationContext(run)
        self._evaluators = _choose(self.context)

    def run(self, state: TrainState) -> dict[str, Any]:
        """Runs all evaluators and writes their results, all files or none.

        The files are `metrics.json`, `queries.json`, `deepfashion2_retrieval.json`, `report.html`
        and, with detections, `deepfashion2_retrieval_detected.json`. Every process has to call it;
        process 0 writes.

        Returns:
            The content of `metrics.json`.
        """
        metrics: dict[str, Any] = {}
        for evaluator in self._evaluators:
            metrics |= evaluator.run(state)
        ranking = self.context.ranking(state)
        # A process that ended earlier would end the process group for the others.
        first_process_only(lambda: self._write(int(state.step), metrics, ranking))
        return metrics

    def _write(self, step: int, metrics: dict[str, Any], ranking: Ranking) -> None:
        run = self.context.run
        partial = self.folder.with_name(self.folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        for name, content in self.context.files.items():
            if isinstance(content, np.ndarray):
                np.save(partial / name, content)
            else:
                (partial / name).write_text(json.dumps(content))
        title = f"Photo → shop item: {run.config.data.name}, step {step}"
        if metric := run.config.loop.keep_best:
            title += f", the best by {metric}"
        split = run.dataset.validation
        examples = ReportExamples(split, self.context.protocol, ranking)
        write_report(partial / "report.html", title, metrics, examples)
        shutil.rmtree(self.folder, ignore_errors=True)
        partial.replace(self.folder)
        run.files.publish(replaced=self.folder.name)


def _choose(context: EvaluationContext) -> list[Evaluator]:
    """Makes the evaluators of a config, in the order of their metrics."""
    config = context.run.config.evaluation
    evaluators: list[Evaluator] = [RetrievalEvaluator(context), BaselineEvaluator(context)]
    if config.detect or config.detections:
        evaluators.append(DetectedBoxEvaluator(context))
    if config.detect:
        evaluators.append(DetectionEvaluator(context))
    if config.training_embeddings:
        evaluators.append(TrainingEmbeddingsEvaluator(context))
    if config.interpolate:
        evaluators.append(InterpolationEvaluator(context))
    if config.rerank:
        evaluators.append(RerankingEvaluator(context))
    return evaluators
