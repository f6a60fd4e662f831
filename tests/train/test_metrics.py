"""Merging and writing of metrics, and the error for a loss that is not finite."""

import json

import jax.numpy as jnp
import pytest

from capret_jax.train.metrics import MetricsWriter, check_finite, merge


def test_merging_adds_sums_and_counts_before_dividing():
    steps = [{"x": (jnp.float32(3), jnp.float32(1))}, {"x": (jnp.float32(1), jnp.float32(3))}]
    assert merge(steps) == {"x": 1.0}


def test_the_error_names_the_terms_that_are_not_finite():
    metrics = {"loss": float("nan"), "loss/itm": float("inf"), "loss/itc": 1.0, "x": float("nan")}
    with pytest.raises(FloatingPointError, match=r"^loss/itm not finite by step 7"):
        check_finite(metrics, 7)
    check_finite({"loss": 1.0, "itm/accuracy": float("nan")}, 7)


def test_a_resumed_curve_has_each_step_once(tmp_path):
    for start, steps in ((0, (1, 3)), (1, (2,))):
        writer = MetricsWriter(tmp_path, start)
        for step in steps:
            writer.write(step, {"loss": step / 2})
        writer.close()
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 9, "lo')  # cut short by a kill
    MetricsWriter(tmp_path, 2).close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
    ]
    assert list(tmp_path.glob("events.out.tfevents.*"))
