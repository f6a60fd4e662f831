"""Runs the cells of an ablation that are not done yet."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import time

from capret_jax.ablation.grid import Plan, Reading
from capret_jax.captioning.collection import (
    check_able,
    check_looker,
    collect_captions,
    open_questioner,
    provenance,
)
from capret_jax.captioning.questioner import Questioner
from capret_jax.checkpoints.converted import ModelCard
from capret_jax.checkpoints.loading import digest, load_weights
from capret_jax.config import NON_SEMANTIC_KEYS, ExperimentConfig, first_difference
from capret_jax.errors import InputError
from capret_jax.train.experiment import Experiment

# Share of the captions that may lose their ends: one that is cut says less than its arm claims.
_CUT = 0.01


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
    # Who has said all is not needed any more.
    questioners = {
        arm: open_questioner(how)
        for arm, how in plan.collected.items()
        if not _took(plan, arm).exists()
    }
    if plan.pretraining is not None:
        folder = pathlib.Path(plan.start)
        folder.mkdir(parents=True, exist_ok=True)
        print("== the model to start from")
        _train(Experiment(plan.pretraining, folder))
    start = _digest_of_model(plan.start)
    for arm in plan.collected:
        how = _how(plan, arm, start)
        if arm in questioners:
            print(f"== captions: {arm}")
            _collect(plan, arm, questioners[arm], how)
        else:
            _check_how(plan, arm, how)
    left = [each for each in plan.readings() if not _is_done(plan, each, workdir, start)]
    _check_cut(plan, left, workdir)
    for number, reading in enumerate(left, 1):
        began, folder = time.perf_counter(), workdir / reading.folder
        _record_of(folder).write_text(json.dumps(_made_with(plan, reading, start), indent=2) + "\n")
        _measure(plan.config_of(reading), reading, folder.parent)
        took = time.perf_counter() - began
        print(f"== {number} of {len(left)}: {reading.folder}, {took:.0f} s", flush=True)
        if not keep_models and reading.said == plan.said(reading.cell)[-1]:
            shutil.rmtree(folder.parent / "checkpoints", ignore_errors=True)


def _check_lookers(plan: Plan) -> None:
    """Whoever is to look can do it, before anything takes long."""
    for arm, folder in plan.lookers.items():
        method = plan.collected[arm].method
        if method == "annotations":
            continue
        try:
            if plan.pretraining is None or folder != plan.start:
                check_looker(folder, method)
            else:
                card, writes = _card_to_be(plan.pretraining), plan.pretraining.loss.mlm_causal
                check_able(card, writes, method, "the first model")
        except InputError as error:
            raise InputError(f"config.collected.{arm}.looker: {error}") from error


def _card_to_be(config: ExperimentConfig) -> ModelCard:
    """Of the model that this trains from scratch."""
    parts = {"mlm_head": config.loss.mlm, "decoder": config.loss.vqa}
    untrained = [f"{part}/kernel" for part, weight in parts.items() if not weight]
    return ModelCard(config.model, "new", untrained)


def _took(plan: Plan, arm: str) -> pathlib.Path:
    """Beside an arm's captions once they are complete: how they came about, and what they took."""
    return plan.captions_file(arm).with_suffix(".json")


def _how(plan: Plan, arm: str, start: str) -> dict:
    """What makes an arm's captions what they are; `start` is the first model's digest."""
    how, looker = plan.collected[arm], plan.lookers[arm]
    model = ""
    if how.method != "annotations":
        model = start if looker == plan.start else _digest_of_model(looker)
    data = plan.config_of(plan.readings()[0]).data
    asked = {"questioner": how.questioner, "language_model": how.language_model}
    found = {**provenance(how, data, model), **asked, "splits": how.splits, "limit": how.limit}
    return json.loads(json.dumps(found))


def _check_how(plan: Plan, arm: str, now: dict) -> None:
    """Refuses captions that came about otherwise."""
    before = json.loads(_took(plan, arm).read_text()).get("how", {})
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise InputError(
                f"{plan.captions_file(arm)} was collected with {key}={before.get(key)!r}, and this "
                f"is {now.get(key)!r}: set config.collected.{arm} or the data back, or choose "
                "another --workdir."
            )


def _collect(plan: Plan, arm: str, questioner: Questioner, how: dict) -> None:
    """Leaves captions, and beside them what they took."""
    out, config = plan.captions_file(arm), plan.collected[arm]
    example = plan.config_of(plan.readings()[0])
    took = collect_captions(
        example.data, plan.lookers[arm], out, config, questioner, example.compute
    )
    if took["unfinished"]:
        raise InputError(
            f"{took['unfinished']} items got no captions of {arm}, since the language model gave "
            "no reply: run the same command again, which goes on with them."
        )
    print(f"{took['items']} captions, {took['items_per_second']:.1f} a second")
    _took(plan, arm).write_text(json.dumps({**took, "how": how}, indent=2) + "\n")


def _digest_of_model(folder: str) -> str:
    return digest(load_weights(folder)[0])


def _record_of(folder: pathlib.Path) -> pathlib.Path:
    """Beside a reading's folder, which comes all at once when it is done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.with_name(f"{folder.name}.made_with.json")


def _made_with(plan: Plan, reading: Reading, start: str) -> dict:
    config = plan.config_of(reading)
    files = {config.data.captions.file, config.embedding.file, config.data.tokenizer}
    return {
        "config": dataclasses.asdict(config),
        "start": start,
        "files": {
            pathlib.Path(file).name: _digest(file)
            for file in sorted(files)
            if pathlib.Path(file).is_file()
        },
    }


def _is_done(plan: Plan, reading: Reading, workdir: pathlib.Path, start: str) -> bool:
    """Whether the results are there; refuses those of other settings, models or captions."""
    folder = workdir / reading.folder
    done, record = (folder / "metrics.json").is_file(), _record_of(folder)
    if not record.exists():
        if done:
            raise InputError(f"{folder} has results, and not what they were made with: remove it.")
        return False
    before, now = json.loads(record.read_text()), _made_with(plan, reading, start)
    # Where the ablation lies does not matter, and its files are compared by what they say.
    paths = ("init_from", "data.tokenizer", "data.captions.file", "embedding.file")
    difference = first_difference(before["config"], now["config"], (*NON_SEMANTIC_KEYS, *paths))
    if before.get("start") != now["start"]:
        difference = difference or f"they started from another model than the one in {plan.start}"
    for name in sorted(before["files"].keys() | now["files"].keys()):
        if before["files"].get(name) != now["files"].get(name):
            difference = difference or f"{name} was another"
    if difference:
        raise InputError(
            f"{folder} has results of something else: {difference}; set it back, or choose another "
            "--workdir."
        )
    return done


def _digest(file: str) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check_cut(plan: Plan, left: list[Reading], workdir: pathlib.Path) -> None:
    """No captions lose their ends, in training or at inference, before the first cell runs."""
    kinds = {(each.cell.captions, each.cell.embedding, each.said): each for each in left}
    for reading in kinds.values():
        folder = workdir / "cells" / reading.cell.folder
        folder.mkdir(parents=True, exist_ok=True)
        if (share := Experiment(plan.config_of(reading), folder).captions_cut()) > _CUT:
            raise InputError(
                f"data.max_tokens cuts {100 * share:.0f} % of the captions of {reading.folder}: "
                "raise --config.experiment.data.max_tokens, or have the vocabulary spell their "
                "words in fewer pieces."
            )


def _measure(config: ExperimentConfig, reading: Reading, folder: pathlib.Path) -> None:
    experiment = Experiment(config, folder)
    if config.mode != "evaluate":
        _train(experiment)
    experiment.evaluate(reading.said)


def _train(experiment: Experiment) -> None:
    """To the last step: what SIGTERM stopped half-way is no result."""
    if not experiment.train():
        raise SystemExit(0)
