"""The command that scores a result file by the official rules."""

import json

import pytest

from tests.commands import in_process
from tests.evaluation.test_official_scorer import item, query, result

COMMAND = "capret_jax.commands.score_deepfashion2"


@pytest.fixture
def files(tmp_path):
    """Arguments for one query whose second picture is relevant."""
    contents = {"results": [result([49, 50])], "query": [query()], "gallery": [item(50)]}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    flags = [f"--{name}={tmp_path / name}.json" for name in ("query", "gallery")]
    return [tmp_path / "results.json", *flags]


def test_metrics_are_printed_and_written(files, tmp_path):
    code, printed, errors = in_process.call(COMMAND, *files, f"--json={tmp_path / 'metrics.json'}")
    assert code == 0, errors
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["top_1"], metrics["top_5"], metrics["queries"]) == (0, 1, 1)
    assert "top_5" in printed


def test_an_unreadable_file_is_one_line(files, tmp_path):
    (tmp_path / "gallery.json").write_text("[")
    code, _, errors = in_process.call(COMMAND, *files)
    assert code == 2 and "gallery.json" in errors and errors.count("\n") == 1
