"""Runs the cells of an ablation that are not complete."""

import pathlib
import shutil
import time
from collections.abc import Sequence

from capret_jax.ablation.caption_arms import check_vqa_models, open_questioners, provide_captions
from capret_jax.ablation.grid import EvaluationRun, Grid
from capret_jax.ablation.provenance import is_complete, model_digest, write_provenance
from capret_jax.config import ExperimentConfig
from capret_jax.errors import InputError
from capret_jax.evaluation.retrieval import CurveEvaluator
from capret_jax.evaluation.suite import EvaluationSuite
from capret_jax.evaluation.summary import summary
from capret_jax.train.run import Run
from capret_jax.train.trainer import Trainer

# Largest share of truncated captions: with more, an arm's name would not describe its captions.
_MAX_TRUNCATED = 0.01


def run_grid(grid: Grid, workdir: pathlib.Path, keep_models: bool) -> None:
    """Trains the initial model, collects captions, then trains and evaluates all cells.

    Complete parts are skipped, and interrupted ones resume.

    Args:
        grid: the cells.
        workdir: folder of the ablation.
        keep_models: True keeps a cell's checkpoints when its evaluations are done.

    Raises:
        InputError: a configuration does not fit the data, a language model cannot be reached, or
            a folder has results or captions of other settings.
    """
    check_vqa_models(grid)
    questioners = open_questioners(grid)
    if grid.pretraining is not None:
        print("== initial model")
        folder = pathlib.Path(grid.initial_model)
        folder.mkdir(parents=True, exist_ok=True)
        run = Run(grid.pretraining, folder)
        _train(run, EvaluationSuite(run))
    initial_digest = model_digest(grid.initial_model)
    provide_captions(grid, questioners, initial_digest)
    pending = [
        evaluation
        for evaluation in grid.evaluations()
        if not is_complete(grid, evaluation, workdir, initial_digest)
    ]
    _check_truncation(grid, pending, workdir)
    for number, evaluation in enumerate(pending, 1):
        start = time.perf_counter()
        cell_folder = workdir / "cells" / evaluation.cell.folder
        write_provenance(grid, evaluation, workdir, initial_digest)
        _train_and_evaluate(grid.config_of(evaluation), evaluation, cell_folder)
        seconds = time.perf_counter() - start
        print(f"== {number} of {len(pending)}: {evaluation.folder}, {seconds:.0f} s", flush=True)
        last = evaluation.caption_source == grid.caption_sources(evaluation.cell)[-1]
        if last and not keep_models:
            shutil.rmtree(cell_folder / "checkpoints", ignore_errors=True)


def _check_truncation(grid: Grid, pending: Sequence[EvaluationRun], workdir: pathlib.Path) -> None:
    """Checks that captions fit `data.max_tokens`, in training and at inference."""
    kinds = {
        (evaluation.cell.captions, evaluation.cell.embedding, evaluation.caption_source): evaluation
        for evaluation in pending
    }
    for evaluation in kinds.values():
        folder = workdir / "cells" / evaluation.cell.folder
        folder.mkdir(parents=True, exist_ok=True)
        truncated = Run(grid.config_of(evaluation), folder).truncated_captions()
        if truncated > _MAX_TRUNCATED:
            raise InputError(
                f"data.max_tokens cuts {100 * truncated:.0f} % of the captions of "
                f"{evaluation.folder}: raise --config.experiment.data.max_tokens, or take a "
                "vocabulary that needs fewer pieces for their words."
            )


def _train_and_evaluate(
    config: ExperimentConfig, evaluation: EvaluationRun, folder: pathlib.Path
) -> None:
    """Trains a cell if it has a loss to train with, and writes one evaluation's results."""
    run = Run(config, folder)
    suite = EvaluationSuite(run, evaluation.caption_source)
    if config.mode != "evaluate":
        _train(run, suite)
    print(summary(suite.run(run.state_to_evaluate()), suite.folder))


def _train(run: Run, suite: EvaluationSuite) -> None:
    """Trains to the last step; exits after SIGTERM, since incomplete training has no result."""
    evaluator = CurveEvaluator(suite.context) if run.config.loop.evaluate_every else None
    if not Trainer(run, evaluator).train():
        raise SystemExit(0)
