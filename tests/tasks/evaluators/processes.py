"""Evaluates tasks as one process of a group.

python -m tests.tasks.evaluators.processes FOLDER TASKS COORDINATOR COUNT INDEX
"""

import dataclasses
import pathlib
import sys

from capret_jax.config import MeshConfig, TaskConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.distributed.process_group import join
from capret_jax.tasks.evaluators import make_evaluator
from capret_jax.tasks.evaluators.suite import write_results
from tests.tasks.runs import random_params, read_json, tiny_run


def main(folder: str, tasks: str, *group: str) -> None:
    """Writes the results to FOLDER/TASK/over_COUNT.

    Args:
        folder: has a folder of files for each task, and the `TaskConfig` as task.json in it.
        tasks: names, with commas between them.
        group: address of the coordinator, number of processes, index of this one.
    """
    coordinator, count, index = group
    if int(count) > 1:
        join(coordinator, int(count), int(index))
    for name in tasks.split(","):
        path = pathlib.Path(folder) / name
        task = TaskConfig(**read_json(path / "task.json"))
        task = dataclasses.replace(task, train=tuple(task.train))
        run = tiny_run(task, path, make_mesh(MeshConfig()), batch_size=6)
        results = make_evaluator(run).measure(random_params())
        write_results(path / f"over_{count}", results)


if __name__ == "__main__":
    main(*sys.argv[1:])
