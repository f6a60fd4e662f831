"""Collection of the arms' captions before training."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from capret_jax.ablation.grid import Grid
from capret_jax.ablation.provenance import model_digest
from capret_jax.captioning.collection import (
    collect_captions,
    provenance,
    require_capability,
    require_trained_heads,
)
from capret_jax.captioning.questioner import Questioner
from capret_jax.captioning.questioner_factory import open_questioner
from capret_jax.checkpoints.converted import ModelCard
from capret_jax.config import ExperimentConfig
from capret_jax.errors import InputError


def check_vqa_models(grid: Grid) -> None:
    """Checks, before any long computation, that VQA and captioning models have what they need.

    Raises:
        InputError: one lacks what its arm's method needs; the message names the key.
    """
    for arm, folder in grid.vqa_models.items():
        method = grid.collected[arm].method
        if method == "annotations":
            continue
        try:
            if grid.pretraining is None or folder != grid.initial_model:
                require_capability(folder, method)
            else:
                card, writes = _card_after(grid.pretraining), grid.pretraining.loss.mlm_causal
                require_trained_heads(card, writes, method, "the initial model")
        except InputError as error:
            raise InputError(f"config.collected.{arm}.vqa_model: {error}") from error


def _card_after(config: ExperimentConfig) -> ModelCard:
    """Returns the model card that a model trained from scratch will have."""
    weights = {"mlm_head": config.loss.mlm, "decoder": config.loss.vqa}
    untrained = [f"{part}/kernel" for part, weight in weights.items() if not weight]
    return ModelCard(config.model, "new", untrained)


def open_questioners(grid: Grid) -> dict[str, Questioner]:
    """Opens the questioner of each arm whose captions are not complete.

    Raises:
        InputError: a language model cannot be reached.
    """
    return {
        arm: open_questioner(config)
        for arm, config in grid.collected.items()
        if not _summary_path(grid, arm).exists()
    }


def provide_captions(
    grid: Grid, questioners: Mapping[str, Questioner], initial_digest: str
) -> None:
    """Collects the captions of the arms with a questioner, and checks those of the others.

    Args:
        grid: the cells.
        questioners: from `open_questioners`.
        initial_digest: `model_digest` of the initial model.

    Raises:
        InputError: a language model gave no reply for some items, or complete captions were
            collected with other settings.
    """
    for arm in grid.collected:
        settings = _collection_settings(grid, arm, initial_digest)
        if arm in questioners:
            print(f"== captions: {arm}")
            _collect(grid, arm, questioners[arm], settings)
        else:
            _check_settings(grid, arm, settings)


def _summary_path(grid: Grid, arm: str) -> pathlib.Path:
    """Returns the file of an arm's summary and settings; it exists when all captions do."""
    return grid.captions_file(arm).with_suffix(".json")


def _collection_settings(grid: Grid, arm: str, initial_digest: str) -> dict[str, Any]:
    """Returns all settings that determine an arm's captions."""
    config, folder = grid.collected[arm], grid.vqa_models[arm]
    digest = ""
    if config.method != "annotations":
        digest = initial_digest if folder == grid.initial_model else model_digest(folder)
    settings = {
        **provenance(config, grid.config_of(grid.evaluations()[0]).data, digest),
        "questioner": config.questioner,
        "language_model": config.language_model,
        "splits": config.splits,
        "limit": config.limit,
    }
    return json.loads(json.dumps(settings))  # turns tuples into lists, as JSON does in the file


def _check_settings(grid: Grid, arm: str, current: dict[str, Any]) -> None:
    summary = json.loads(_summary_path(grid, arm).read_text())
    saved = summary.get("settings", summary.get("how", {}))  # "how": until 0.1
    for key in sorted(saved.keys() | current.keys()):
        if saved.get(key) != current.get(key):
            raise InputError(
                f"{grid.captions_file(arm)} was collected with {key}={saved.get(key)!r}, and this "
                f"is {current.get(key)!r}: set config.collected.{arm} or the data back, or choose "
                "another --workdir."
            )


def _collect(grid: Grid, arm: str, questioner: Questioner, settings: dict[str, Any]) -> None:
    """Writes an arm's captions and their summary."""
    config = grid.config_of(grid.evaluations()[0])
    summary = collect_captions(
        config.data,
        grid.vqa_models[arm],
        grid.captions_file(arm),
        grid.collected[arm],
        questioner=questioner,
        compute=config.compute,
    )
    if summary["unfinished"]:
        raise InputError(
            f"{summary['unfinished']} items got no captions of {arm}, since the language model "
            "gave no reply: run the same command again, which continues with them."
        )
    print(f"{summary['items']} captions, {summary['items_per_second']:.1f} a second")
    summary |= {"settings": settings}
    _summary_path(grid, arm).write_text(json.dumps(summary, indent=2) + "\n")
