"""Models between the start and the end of training."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.config import EvaluationConfig, ExperimentConfig
from capret_jax.errors import InputError
from capret_jax.evaluation.context import EvaluationContext
from capret_jax.evaluation.interpolation import InterpolationEvaluator, interpolate
from capret_jax.evaluation.report import ReportExamples, write_report
from capret_jax.evaluation.retrieval import CurveEvaluator
from capret_jax.evaluation.summary import summary
from capret_jax.train.run import Run


def test_a_model_at_a_share_of_the_way():
    start, end = {"kernel": jnp.array([2.0, -1.0])}, {"kernel": jnp.array([4.0, 3.0])}
    np.testing.assert_allclose(interpolate(start, end, 0.25)["kernel"], [2.5, 0.0])


def test_the_ends_of_the_line_are_the_start_and_the_trained_model(
    tiny_config, trained_dir, tmp_path
):
    config = dataclasses.replace(
        tiny_config,
        init_from=str(trained_dir),
        evaluation=EvaluationConfig(interpolate=(0.0, 0.5, 1.0)),
    )
    run = Run(config, tmp_path)
    context, state = EvaluationContext(run), run.fresh_state()
    rows = InterpolationEvaluator(context).run(state)["interpolation"]
    assert [row["share"] for row in rows] == [0.0, 0.5, 1.0]
    metrics = json.loads((trained_dir / "evaluation" / "metrics.json").read_text())
    assert rows[0]["mAP"] == pytest.approx(metrics["mAP"])
    untrained = CurveEvaluator(context).run(state)
    assert rows[2]["mAP"] == pytest.approx(untrained["retrieval/mAP"])
    mixed = jax.tree.map(lambda a, b: (a + b) / 2, run.initial_state().model, state.model)
    middle = CurveEvaluator(context).run(state.with_model(mixed))
    assert rows[1]["mAP"] == pytest.approx(middle["retrieval/mAP"], abs=1e-3)

    metrics["interpolation"] = rows
    assert "at 0.5 from start" in summary(metrics, tmp_path)
    ranking = context.ranking(state)
    examples = ReportExamples(run.dataset.validation, context.protocol, ranking)
    write_report(tmp_path / "report.html", "Title", metrics, examples)
    assert "Between start and end of training" in (tmp_path / "report.html").read_text()


def test_a_start_that_is_gone_is_refused_before_training(tmp_path):
    config = ExperimentConfig(
        init_from=str(tmp_path), evaluation=EvaluationConfig(interpolate=(0.5,))
    )
    context = SimpleNamespace(run=SimpleNamespace(config=config))
    with pytest.raises(InputError, match="neither a converted checkpoint"):
        InterpolationEvaluator(context)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"evaluation": {"interpolate": (0.5,)}}, "interpolate .*set config.init_from"),
        ({"evaluation": {"interpolate": (1.5,)}, "init_from": "x"}, "must be shares in"),
    ],
)
def test_impossible_interpolation_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        evaluation = EvaluationConfig(**settings.pop("evaluation"))
        ExperimentConfig(evaluation=evaluation, **settings)
