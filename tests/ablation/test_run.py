"""A minimal ablation on the mini dataset: complete, resumed, and refused."""

import dataclasses
import json

import pytest

from capret_jax.ablation import run as ablation_run
from capret_jax.ablation.grid import Grid
from capret_jax.ablation.report import write_results
from capret_jax.ablation.run import run_grid
from capret_jax.config import EvaluationConfig, to_config_dict
from capret_jax.config.loss import TERMS
from capret_jax.datasets import open_dataset
from capret_jax.errors import InputError

ARMS = {
    "captions": ("none", "category"),
    "objects": ("none",),
    "stages": ("zero_shot",),
    "embeddings": ("image",),
    "seeds": (0,),
}


@pytest.fixture(scope="module")
def minimal_config(small_config, tiny_config, trained_dir):
    """Cells train the step that the shared run has compiled, or not at all."""
    config = small_config.copy_and_resolve_references()
    experiment = dataclasses.replace(
        tiny_config,
        init_from=str(trained_dir),
        loop=dataclasses.replace(tiny_config.loop, evaluate_every=0),
        evaluation=EvaluationConfig(baselines=False),
    )
    config.experiment = to_config_dict(experiment)
    config.captions.none = {"loss": dict.fromkeys(TERMS, 0.0)}
    config.captions.category = {"data": {"captions": {"fields": ("category",)}}}
    config.objects.none, config.stages.zero_shot = {}, {}
    return config


@pytest.fixture(scope="module")
def minimal(minimal_config, tmp_path_factory):
    """One cell without and one with training, both without collected captions."""
    workdir = tmp_path_factory.mktemp("ablation")
    grid = Grid(minimal_config, workdir, ARMS)
    run_grid(grid, workdir, keep_models=False)
    return grid, workdir


def test_results_and_reports_are_written(minimal, minimal_config):
    grid, workdir = minimal
    dataset = open_dataset(grid.config_of(grid.evaluations()[0]).data)
    results = write_results(grid, dataset, workdir, tuple(minimal_config.read_by))
    assert json.loads((workdir / "ablation.json").read_text()) == json.loads(json.dumps(results))
    assert [arm["captions"] for arm in results["arms"]] == ["none", "category"]
    (contrast,) = results["contrasts"]
    none, category = (arm["mAP"]["mean"] for arm in results["arms"])
    assert contrast["difference"]["mean"] == pytest.approx(category - none)
    (boxes,) = results["boxes"]
    assert (boxes["objects"], boxes["stage"]) == ("none", "zero_shot")
    curve = (workdir / "cells" / grid.cells[1].folder / "metrics.jsonl").read_text()
    last = json.loads(curve.splitlines()[-1])
    assert boxes["iou"] == pytest.approx(last["box_giou/iou"])
    assert (workdir / "report.html").read_text().count("<circle") == 1
    assert "| none | zero_shot | 0." in (workdir / "report.md").read_text()
    assert "| category | none | zero_shot, objects none |" in (workdir / "report.md").read_text()


def test_a_cell_without_losses_is_the_initial_model(minimal):
    grid, workdir = minimal
    assert [grid.trains(cell) for cell in grid.cells] == [False, True]
    for cell in grid.cells:
        folder = workdir / "cells" / cell.folder
        assert (folder / "metrics.jsonl").exists() == grid.trains(cell)
        assert not (folder / "checkpoints").exists()  # keep_models=False


def test_complete_cells_are_not_run_again(minimal, monkeypatch, minimal_config):
    grid, workdir = minimal
    evaluated = []
    monkeypatch.setattr(
        ablation_run,
        "_train_and_evaluate",
        lambda config, evaluation, folder: evaluated.append(evaluation),
    )
    run_grid(grid, workdir, keep_models=False)
    assert not evaluated
    run_grid(Grid(minimal_config, workdir, ARMS | {"seeds": (0, 2)}), workdir, keep_models=True)
    assert {evaluation.cell.seed for evaluation in evaluated} == {2}


def test_results_of_other_settings_are_refused(minimal, minimal_config):
    _, workdir = minimal
    other = minimal_config.copy_and_resolve_references()
    other.experiment.optimizer.weight_decay = 0.5
    message = r"another configuration: config\.optimizer\.weight_decay was .* and is 0\.5"
    with pytest.raises(InputError, match=message):
        run_grid(Grid(other, workdir, ARMS), workdir, keep_models=False)


def test_results_of_another_initial_model_are_refused(minimal, monkeypatch):
    grid, workdir = minimal
    monkeypatch.setattr(ablation_run, "model_digest", lambda folder: "another")
    with pytest.raises(InputError, match="started from another model"):
        run_grid(grid, workdir, keep_models=False)


def test_truncated_captions_are_refused(minimal_config, tmp_path):
    config = minimal_config.copy_and_resolve_references()
    config.experiment.data.max_tokens = 4
    grid = Grid(config, tmp_path, ARMS | {"captions": ("category",)})
    with pytest.raises(InputError, match="cuts 100 % of the captions of cells/category"):
        run_grid(grid, tmp_path, keep_models=False)


@pytest.mark.parametrize(
    "loss, value, method, message",
    [
        ("vqa", 0.0, "conversation", "needs the decoder, .*no trained values"),
        ("mlm", 0.0, "captioner", "needs the mlm_head, .*no trained values"),
        ("mlm_causal", False, "captioner", "has learnt to fill gaps"),
    ],
)
def test_models_without_the_needed_heads_are_refused(
    small_config, tmp_path, loss, value, method, message
):
    config = small_config.copy_and_resolve_references()
    config.pretraining.loss[loss] = value
    grid = Grid(config, tmp_path, ARMS | {"captions": (method,)})
    with pytest.raises(InputError, match=rf"config\.collected\.{method}\.vqa_model: .*{message}"):
        run_grid(grid, tmp_path, keep_models=False)


def test_an_unfinished_ablation_has_no_report(minimal_config, tmp_path):
    grid = Grid(minimal_config, tmp_path, ARMS)
    dataset = open_dataset(grid.config_of(grid.evaluations()[0]).data)
    with pytest.raises(InputError, match="has no results"):
        write_results(grid, dataset, tmp_path, tuple(minimal_config.read_by))


def test_sigterm_in_training_leaves_no_result(minimal_config, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation_run.Trainer, "train", lambda self: False)
    with pytest.raises(SystemExit):
        trained = ARMS | {"captions": ("category",)}
        run_grid(Grid(minimal_config, tmp_path, trained), tmp_path, keep_models=True)
    assert (tmp_path / "cells").exists() and not list(tmp_path.rglob("metrics.json"))
