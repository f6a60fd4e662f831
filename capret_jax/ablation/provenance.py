"""Provenance of an evaluation's results: settings and digests, checked before reuse."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from capret_jax.ablation.grid import EvaluationRun, Grid
from capret_jax.checkpoints.loading import ModelFolder, digest
from capret_jax.config import NON_SEMANTIC_KEYS, first_difference
from capret_jax.errors import InputError

# Paths that depend on the ablation's folder, which may move: file contents are compared instead.
_PATHS = ("init_from", "data.tokenizer", "data.captions.file", "embedding.file")


def model_digest(folder: str) -> str:
    """Returns the digest of a model's parameters."""
    return digest(ModelFolder(folder).load_params())


def write_provenance(
    grid: Grid, evaluation: EvaluationRun, workdir: pathlib.Path, initial_digest: str
) -> None:
    """Records the settings and files that an evaluation is about to use.

    Args:
        grid: the cells.
        evaluation: one of its evaluations.
        workdir: folder of the ablation.
        initial_digest: `model_digest` of the initial model.
    """
    record = _provenance(grid, evaluation, initial_digest)
    path = _provenance_path(workdir / evaluation.folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


def is_complete(
    grid: Grid, evaluation: EvaluationRun, workdir: pathlib.Path, initial_digest: str
) -> bool:
    """Returns True if an evaluation has results.

    Args:
        grid: the cells.
        evaluation: one of its evaluations.
        workdir: folder of the ablation.
        initial_digest: `model_digest` of the initial model.

    Raises:
        InputError: the results have other settings, another initial model or other captions.
    """
    folder = workdir / evaluation.folder
    complete, path = (folder / "metrics.json").is_file(), _provenance_path(folder)
    if not path.exists():
        if complete:
            raise InputError(f"{folder} has results, but {path.name} is missing: remove it.")
        return False
    saved, current = json.loads(path.read_text()), _provenance(grid, evaluation, initial_digest)
    if difference := _difference(saved, current, grid.initial_model):
        raise InputError(
            f"{folder} has results of another configuration: {difference}; set it back, or choose "
            "another --workdir."
        )
    return complete


def _difference(saved: dict[str, Any], current: dict[str, Any], initial_model: str) -> str:
    """Describes the first difference; empty if there is none."""
    keys = (*NON_SEMANTIC_KEYS, *_PATHS)
    if difference := first_difference(saved["config"], current["config"], keys):
        return difference
    if saved.get("start") != current["start"]:
        return f"it started from another model than the one in {initial_model}"
    for name in sorted(saved["files"].keys() | current["files"].keys()):
        if saved["files"].get(name) != current["files"].get(name):
            return f"{name} was another file"
    return ""


def _provenance_path(folder: pathlib.Path) -> pathlib.Path:
    """Returns a path beside the evaluation's folder, which exists only when it is complete."""
    return folder.with_name(f"{folder.name}.made_with.json")


def _provenance(grid: Grid, evaluation: EvaluationRun, initial_digest: str) -> dict[str, Any]:
    config = grid.config_of(evaluation)
    files = {config.data.captions.file, config.embedding.file, config.data.tokenizer}
    return {
        "config": dataclasses.asdict(config),
        "start": initial_digest,
        "files": {
            pathlib.Path(file).name: _file_digest(file)
            for file in sorted(files)
            if pathlib.Path(file).is_file()
        },
    }


def _file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
