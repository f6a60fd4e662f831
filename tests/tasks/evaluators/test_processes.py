"""Two processes evaluate like one."""

import dataclasses
import json

import pytest

from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import make_mesh
from tests.multiprocess.group import run_group
from tests.tasks.files import WRITERS
from tests.tasks.runs import read_json, tiny_run

TASKS = ("retrieval", "vqa", "grounding")


@pytest.mark.slow
def test_two_processes_evaluate_like_one(tmp_path):
    for name in TASKS:
        folder = tmp_path / name
        folder.mkdir()
        task = WRITERS[name](folder)
        (folder / "task.json").write_text(json.dumps(dataclasses.asdict(task)))
        tiny_run(task, folder, make_mesh(MeshConfig()))  # writes the vocabulary
    program = ["-m", "tests.tasks.evaluators.processes", str(tmp_path), ",".join(TASKS)]
    run_group(program, 1, devices=2)
    run_group(program, 2, devices=1)
    for name in TASKS:
        one, two = tmp_path / name / "over_1", tmp_path / name / "over_2"
        for path in one.iterdir():
            ours, theirs = read_json(two / path.name), read_json(path)
            if path.name == "metrics.json":
                ours, theirs = without_seconds(ours), without_seconds(theirs)
            if path.name == "boxes.json":
                boxes = [sum((entry.pop("box") for entry in x), []) for x in (ours, theirs)]
                assert boxes[0] == pytest.approx(boxes[1], abs=0.02)
            assert ours == theirs


def without_seconds(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if not name.startswith("seconds")}
