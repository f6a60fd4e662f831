"""Files of results: all or none."""

import json

import pytest

from capret_jax.tasks.evaluators.inputs import TaskResults
from capret_jax.tasks.evaluators.suite import write_results


def test_all_files_are_written_or_none(tmp_path):
    folder = tmp_path / "evaluation"
    write_results(folder, TaskResults({"accuracy": 0.5}, {"result.json": [1]}))
    write_results(folder, TaskResults({"accuracy": 0.75}, {"other.json": [2]}))
    names = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    assert names == {"metrics.json": {"accuracy": 0.75}, "other.json": [2]}
    with pytest.raises(TypeError):
        write_results(folder, TaskResults({"accuracy": 1.0}, {"bad.json": object()}))
    assert {path.name for path in folder.iterdir()} == names.keys()
