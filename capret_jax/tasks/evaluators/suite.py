"""The folder that the results of a task's evaluation are written to."""

import json
import pathlib
import shutil
from typing import Any

from capret_jax.distributed.first_process import first_process_only
from capret_jax.tasks.evaluators.inputs import TaskResults

METRICS = "metrics.json"


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
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    contents: dict[str, Any] = {METRICS: results.metrics, **results.files}
    for name, content in contents.items():
        (partial / name).write_text(json.dumps(content, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
