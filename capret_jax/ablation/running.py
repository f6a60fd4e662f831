"""Runs the cells of an ablation that are not done yet."""

import pathlib
import shutil
import time

from capret_jax.ablation.plan import Plan, Reading
from capret_jax.collecting import collect_captions
from capret_jax.experiment import Experiment


def run(plan: Plan, workdir: pathlib.Path, keep_models: bool) -> None:
    """Trains what every cell starts from, collects captions, then runs all cells.

    Whatever is complete is left alone, and what was stopped goes on.

    Args:
        plan: the cells.
        workdir: of the ablation.
        keep_models: whether a cell's checkpoints stay when its evaluations are there.

    Raises:
        InputError: a configuration does not fit the data, or a folder belongs to another one.
    """
    if plan.pretraining is not None:
        folder = pathlib.Path(plan.start)
        folder.mkdir(parents=True, exist_ok=True)
        print("== the model to start from")
        _train(Experiment(plan.pretraining, folder))
    data = plan.config_of(plan.readings()[0]).data
    for arm, how in plan.collected.items():
        print(f"== captions: {arm}")
        took = collect_captions(data, plan.looker, plan.captions_file(arm), how)
        if took["items"]:
            print(f"{took['items']} captions, {took['items_per_second']:.1f} a second")
    readings = plan.readings()
    for number, reading in enumerate(readings, 1):
        folder = workdir / reading.folder
        if (folder / "metrics.json").is_file():
            continue
        start = time.perf_counter()
        print(f"== {number} of {len(readings)}: {reading.folder}")
        _run(plan, reading, folder)
        print(f"{time.perf_counter() - start:.0f} s")
        if not keep_models and reading.said == plan.said(reading.cell)[-1]:
            shutil.rmtree(folder.parent / "checkpoints", ignore_errors=True)


def _run(plan: Plan, reading: Reading, folder: pathlib.Path) -> None:
    config, cell_folder = plan.config_of(reading), folder.parent
    cell_folder.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(config, cell_folder)
    if config.mode != "evaluate":
        _train(experiment)
    experiment.evaluate(reading.said)


def _train(experiment: Experiment) -> None:
    """To the last step: what SIGTERM stopped half-way is no result."""
    if not experiment.train():
        raise SystemExit(0)
