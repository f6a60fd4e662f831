"""Layouts of the mesh train and evaluate alike over one, two and four processes.

Each takes half a minute, mostly to compile in every process. So one is tested always that splits
parameters over processes in both ways, and all of them over one, two and four processes with
CAPRET_ALL_LAYOUTS=1; tests/multiprocess/test_local_processes.py has examples over processes.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable

import pytest

from tests.multiprocess.group import run_group
from tests.multiprocess.layouts import DETECTING, LAYOUTS, ONE_DEVICE

pytestmark = pytest.mark.slow


# Number of processes -> layouts.
TESTED = {4: ("fsdp 2 x tensor 2",)}
if os.environ.get("CAPRET_ALL_LAYOUTS"):
    TESTED = dict.fromkeys((1, 2, 4), tuple(LAYOUTS))


@pytest.fixture(scope="module")
def train(prepared_dir, tmp_path_factory) -> Callable[..., pathlib.Path]:
    """Runs a number of processes with some layouts, once; returns the folder of the runs."""

    @functools.cache
    def run(processes: int, *layouts: str) -> pathlib.Path:
        folder = tmp_path_factory.mktemp(f"over_{processes}")
        program = ["-m", "tests.multiprocess.layouts", str(prepared_dir), str(folder)]
        devices = 1 if layouts == (ONE_DEVICE,) else 4
        run_group([*program, ",".join(layouts)], processes, devices // processes)
        return folder

    return run


@pytest.mark.parametrize(
    "processes, layout",
    [(processes, layout) for processes, layouts in TESTED.items() for layout in layouts],
)
def test_it_trains_and_evaluates_like_one_device(processes, layout, train):
    reference, trained = train(1, ONE_DEVICE) / ONE_DEVICE, train(processes, *TESTED[processes])
    ours, theirs = curve(trained / layout), curve(reference)
    assert len(ours) == len(theirs) == 3
    for here, there in zip(ours, theirs, strict=True):
        assert here == pytest.approx(there, rel=3e-3, abs=3e-4)
    measured, expected = metrics(trained / layout), metrics(reference)
    assert ("recall" in measured) == (layout in DETECTING)
    assert measured == pytest.approx({name: expected[name] for name in measured}, abs=5e-3)


def curve(workdir: pathlib.Path) -> list[dict]:
    points = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for point in points:
        point.pop("images_per_second")
    return points


def metrics(workdir: pathlib.Path) -> dict[str, float]:
    content = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    metrics = {name: content[name] for name in ("mAP", "top_1", "top_20")}
    if "detection" in content:
        detected = content["detection"]["locations"]
        metrics |= {name: detected[name] for name in ("AP50", "threshold", "recall")}
    return metrics
