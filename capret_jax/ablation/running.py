"""Runs the cells of an ablation that are not done yet."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import time

from capret_jax.ablation.plan import Cell, Plan, Reading
from capret_jax.collecting import check_able, check_looker, collect_captions, open_questioner
from capret_jax.config import WORKINGS, ExperimentConfig, first_difference
from capret_jax.convert.checkpoint import ModelCard
from capret_jax.errors import InputError
from capret_jax.experiment import Experiment

# Share of the captions that may lose their ends: one that is cut says less than its arm claims.
_CUT = 0.01
# What a reading was made with, beside the folder of its results, which comes all at once.
_MADE_WITH = "made_with.json"


def run(plan: Plan, workdir: pathlib.Path, keep_models: bool) -> None:
    """Trains what every cell starts from, collects captions, then runs all cells.

    Whatever is complete is left alone, and what was stopped goes on.

    Args:
        plan: the cells.
        workdir: of the ablation.
        keep_models: whether a cell's checkpoints stay when its evaluations are there.

    Raises:
        InputError: a configuration does not fit the data, a language model cannot be reached, or
            a folder belongs to another ablation.
    """
    _check_lookers(plan)
    questioners = {arm: open_questioner(how) for arm, how in plan.collected.items()}
    if plan.pretraining is not None:
        folder = pathlib.Path(plan.start)
        folder.mkdir(parents=True, exist_ok=True)
        print("== the model to start from")
        _train(Experiment(plan.pretraining, folder))
    for arm, questioner in questioners.items():
        print(f"== captions: {arm}")
        _collect(plan, arm, questioner)
    readings = plan.readings()
    for number, reading in enumerate(readings, 1):
        start = time.perf_counter()
        if _run(plan, reading, workdir / reading.folder):
            took = time.perf_counter() - start
            print(f"== {number} of {len(readings)}: {reading.folder}, {took:.0f} s", flush=True)
        if not keep_models and reading.said == plan.said(reading.cell)[-1]:
            checkpoints = workdir / "cells" / reading.cell.folder / "checkpoints"
            shutil.rmtree(checkpoints, ignore_errors=True)


def _check_lookers(plan: Plan) -> None:
    """Whoever is to look can do it, before anything takes long."""
    for arm, folder in plan.lookers.items():
        method = plan.collected[arm].method
        try:
            if plan.pretraining is None or folder != plan.start:
                check_looker(folder, method)
            else:
                check_able(_card_to_be(plan.pretraining), method, "the first model")
        except InputError as error:
            raise InputError(f"config.collected.{arm}.looker: {error}") from error


def _card_to_be(config: ExperimentConfig) -> ModelCard:
    """Of the model that this trains from scratch."""
    parts = {"mlm_head": config.loss.mlm, "decoder": config.loss.vqa}
    untrained = [f"{part}/kernel" for part, weight in parts.items() if not weight]
    return ModelCard(config.model, "new", untrained)


def _collect(plan: Plan, arm: str, questioner) -> None:
    """Leaves captions, and beside them what they took."""
    out, how = plan.captions_file(arm), plan.collected[arm]
    example = plan.config_of(plan.readings()[0])
    took = collect_captions(example.data, plan.lookers[arm], out, how, questioner, example.compute)
    if took["unfinished"]:
        raise InputError(
            f"{took['unfinished']} items got no captions of {arm}, since the language model gave "
            "no reply: run the same command again, which goes on with them."
        )
    beside = out.with_suffix(".json")
    if took["items"]:
        print(f"{took['items']} captions, {took['items_per_second']:.1f} a second")
    elif beside.exists():
        return  # how fast they came is what the run that collected them knows
    beside.write_text(json.dumps(took, indent=2) + "\n")


def _run(plan: Plan, reading: Reading, folder: pathlib.Path) -> bool:
    """Whether there was anything to do."""
    config = plan.config_of(reading)
    _check_made_with(config, folder)
    if (folder / "metrics.json").is_file():
        return False
    _measure(config, reading, folder.parent)
    return True


def _measure(config: ExperimentConfig, reading: Reading, folder: pathlib.Path) -> None:
    experiment = Experiment(config, folder)
    _check_cut(experiment, reading.cell)
    if config.mode != "evaluate":
        _train(experiment)
    experiment.evaluate(reading.said)


def _check_made_with(config: ExperimentConfig, folder: pathlib.Path) -> None:
    """Refuses results of another configuration, or of other captions; remembers these."""
    files = {config.data.captions.file, config.embedding.file} - {""}
    now = {
        "config": dataclasses.asdict(config),
        "files": {pathlib.Path(file).name: _digest(file) for file in sorted(files)},
    }
    path = folder.with_name(f"{folder.name}.{_MADE_WITH}")
    if not path.exists():
        if (folder / "metrics.json").exists():
            raise InputError(f"{folder} has results, and not what they were made with: remove it.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(now, indent=2) + "\n")
        return
    before = json.loads(path.read_text())
    # Where the ablation lies does not matter, and its files are compared by what they say.
    paths = ("init_from", "data.tokenizer", "data.captions.file", "embedding.file")
    difference = first_difference(before["config"], now["config"], (*WORKINGS, *paths))
    for name, digest in now["files"].items():
        if before["files"].get(name) != digest:
            difference = difference or f"the captions in {name} were others"
    if difference:
        raise InputError(
            f"{folder} has results of something else: {difference}; set it back, or choose another "
            "--workdir."
        )


def _digest(file: str) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check_cut(experiment: Experiment, cell: Cell) -> None:
    if (share := experiment.captions_cut()) > _CUT:
        raise InputError(
            f"data.max_tokens cuts {100 * share:.0f} % of the captions of {cell.captions}: raise "
            "--config.experiment.data.max_tokens, or have the vocabulary spell their words in "
            "fewer pieces."
        )


def _train(experiment: Experiment) -> None:
    """To the last step: what SIGTERM stopped half-way is no result."""
    if not experiment.train():
        raise SystemExit(0)
