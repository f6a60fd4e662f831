"""The folder that the results of a task's evaluation are written to."""

import json
import pathlib
import shutil
from typing import Any

from capret_jax.distributed.first_process import first_process_only
from capret_jax.errors import InputError
from capret_jax.tasks.evaluators.inputs import TaskResults

METRICS = "metrics.json"
# The files of all evaluations: of a folder that holds others, nothing is deleted.
RESULTS = {
    *(METRICS, "boxes.json", "captions.json", "detections.json"),
    *("judgements.json", "result.json"),
}


def check_replaceable(folder: pathlib.Path, flag: str) -> None:
    """Checks that results may replace a folder.

    Args:
        folder: folder of the results, which need not exist.
        flag: what names it, for the message.

    Raises:
        InputError: the path is no folder, or has other files than those of an evaluation.
    """
    for path in (folder, _partial(folder)):
        if not path.exists():
            continue
        if not path.is_dir() or {entry.name for entry in path.iterdir()} - RESULTS:
            raise InputError(
                f"{flag}={path} holds other things than results of an evaluation and is not "
                f"overwritten: choose another folder with {flag}."
            )


def write_results(folder: pathlib.Path, results: TaskResults) -> None:
    """Writes `metrics.json` and the files of the results, all or none; process 0 writes.

    Every process has to call it.

    Args:
        folder: folder of the results, which is replaced.
        results: metrics and files of an evaluation.
    """
    # A process that ended earlier would end the process group for the others.
    first_process_only(lambda: _write(folder, results))


def _write(folder: pathlib.Path, results: TaskResults) -> None:
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    contents: dict[str, Any] = {METRICS: results.metrics, **results.files}
    for name, content in contents.items():
        (partial / name).write_text(json.dumps(content, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def _partial(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder that results are written to before they replace `folder`."""
    return folder.parent / f"{folder.name}.partial"
