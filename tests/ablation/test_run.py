"""The ablation as a command on the mini dataset: complete, resumed, and refused."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from capret_jax.ablation import run as running
from capret_jax.ablation.grid import Plan
from capret_jax.ablation.report import write_results
from capret_jax.config import DataConfig, to_config_dict
from capret_jax.data.schema import LEVELS
from capret_jax.datasets import open_dataset
from capret_jax.errors import InputError
from tests.captioning.conftest import answering_config, serve  # noqa: F401
from tests.test_configs import CONFIGS

ROOT = pathlib.Path(__file__).parent.parent.parent


def values(kind: str = "demo"):
    import runpy

    return runpy.run_path(str(CONFIGS / "ablation.py"))["get_config"](kind)


@pytest.fixture(scope="module")
def small(prepared_dir):
    """The shipped config with a model, data and steps for tests."""
    config = values()
    data = DataConfig(variant="mini", prepared_dir=str(prepared_dir), max_tokens=24)
    config.pretraining = to_config_dict(answering_config(data))
    config.pretraining.data.views_per_identity = 0
    config.pretraining.data.vocabulary = tuple(LEVELS)
    own, first = config.experiment, config.pretraining
    own.model = first.model.copy_and_resolve_references()
    own.model.decoder_layers = 0
    own.batch_size, own.loss.matching_group, own.optimizer.warmup_steps = 16, 2, 1
    own.data.variant, own.data.prepared_dir = "mini", str(prepared_dir)
    own.data.max_tokens = 40  # a small vocabulary spells in many pieces
    own.loop = first.loop.copy_and_resolve_references()
    return config


ARMS = {
    "captions": ("none", "conversation"),
    "objects": ("none",),
    "stages": ("zero_shot", "fine_tuned"),
    "embeddings": ("image", "joined"),
    "seeds": (0,),
}


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ablation")
    small.read_by = ("conversation", "none", "fine_tuned")
    plan = Plan(small, workdir, ARMS)
    running.run(plan, workdir, keep_models=False)
    dataset = open_dataset(plan.config_of(plan.readings()[0]).data)
    return plan, workdir, write_results(plan, dataset, workdir, small.read_by)


def test_it_leaves_results_and_reports(finished):
    plan, workdir, results = finished
    assert json.loads((workdir / "ablation.json").read_text()) == json.loads(json.dumps(results))
    # Two captions x two stages, and one embedding with three kinds of captions at inference.
    assert len(results["arms"]) == 4 + 3
    assert all(len(arm["mAP_by_seed"]) == 1 for arm in results["arms"])
    assert results["audit"]["shared_identities"] == 0
    page = (workdir / "report.html").read_text()
    for sentence in results["conclusion"]:
        assert all(part in page for part in re.split(" - |; ", sentence.rstrip(".")))
    assert page.count("<circle") == sum(1 for each in results["contrasts"] if each["family"])
    assert (workdir / "report.md").read_text().count("| conversation |") >= 4


def test_nothing_to_train_is_the_first_model_itself(finished):
    plan, workdir, _ = finished
    trained = {cell.folder: plan.trains(cell) for cell in plan.cells}
    assert [name for name, trains in trained.items() if not trains] == [
        "none-none-zero_shot-image-0"
    ]
    for name in trained:
        # Checkpoints were not to be kept, and one cell never had any.
        assert (workdir / "cells" / name / "metrics.jsonl").exists() == trained[name]
        assert not (workdir / "cells" / name / "checkpoints").exists()


def test_the_audit_names_what_reached_a_query(finished):
    _, workdir, results = finished
    said = results["audit"]["query_captions"]
    assert said["image, none"] == said["joined, none"] == "nothing: it is empty"
    assert said["joined, generated"].startswith("answers of X2-VLM to script")
    assert said["joined, oracle"] == (
        "the annotations: category, sleeve, colour, pattern, print, neckline"
    )


def test_what_is_done_is_not_done_again(finished, monkeypatch, small):
    plan, workdir, _ = finished
    ran = []
    monkeypatch.setattr(running, "_measure", lambda config, reading, folder: ran.append(reading))
    running.run(plan, workdir, keep_models=False)
    assert not ran
    more = Plan(small, workdir, ARMS | {"seeds": (0, 2)})
    running.run(more, workdir, keep_models=True)
    assert {reading.cell.seed for reading in ran} == {2}


def test_regions_with_condensed_captions(finished, small, serve, tmp_path):  # noqa: F811
    """The arms that are not run by default, once."""
    _, workdir, _ = finished
    # The first words of the first caption.
    server = serve(lambda prompt, number: " ".join(prompt.split("\n- ")[1].split()[:3]))
    config = small.copy_and_resolve_references()
    config.experiment.init_from = str(workdir / "pretrained")
    config.collected.ic3.questioner = server.url
    arms = {"captions": ("ic3",), "objects": ("regions",), "stages": ("fine_tuned",)}
    plan = Plan(config, tmp_path, {**arms, "embeddings": ("image",), "seeds": (0,)})
    running.run(plan, tmp_path, keep_models=False)
    metrics = json.loads((tmp_path / plan.readings()[0].folder / "metrics.json").read_text())
    assert metrics["view"] == "region"
    took = json.loads((tmp_path / "captions" / "ic3.json").read_text())
    assert took["calls"] >= 1 and took["prompt_tokens"] >= 100
    with pytest.raises(InputError, match="no captions of ic3"):
        server.reply = lambda prompt, number: 400
        file = plan.captions_file("ic3")
        file.with_suffix(".json").unlink()
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
        journal = file.with_name(file.name + ".journal")
        journal.write_text(journal.read_text().splitlines(keepends=True)[0])
        running.run(plan, tmp_path, keep_models=False)


@pytest.mark.parametrize(
    "loss, value, method, message",
    [
        ("vqa", 0.0, "conversation", "needs the decoder, .*no trained values"),
        ("mlm", 0.0, "captioner", "needs the mlm_head, .*no trained values"),
        ("mlm_causal", False, "captioner", "has learnt to fill gaps"),
    ],
)
def test_whoever_is_to_look_must_have_learnt_it(small, tmp_path, loss, value, method, message):
    config = small.copy_and_resolve_references()
    config.pretraining.loss[loss] = value
    plan = Plan(config, tmp_path, ARMS | {"captions": (method,), "embeddings": ("image",)})
    with pytest.raises(InputError, match=rf"config\.collected\.{method}\.looker: .*{message}"):
        running.run(plan, tmp_path, keep_models=False)


def test_results_of_other_settings_are_refused(finished, small):
    _, workdir, _ = finished
    other = small.copy_and_resolve_references()
    other.experiment.loss.arcface_margin = 0.3
    with pytest.raises(InputError, match=r"something else: config\.loss\.arcface_margin was 0\.15"):
        running.run(Plan(other, workdir, ARMS), workdir, keep_models=False)


def test_results_from_another_first_model_are_refused(finished, small, monkeypatch):
    plan, workdir, _ = finished
    monkeypatch.setattr(running, "digest", lambda params: "another")
    with pytest.raises(InputError, match="was collected with model=.*'another'"):
        running.run(plan, workdir, keep_models=False)
    monkeypatch.setattr(running, "_check_how", lambda *_: None)
    with pytest.raises(InputError, match="started from another model"):
        running.run(plan, workdir, keep_models=False)


def test_captions_that_came_about_otherwise_are_refused(finished, small):
    _, workdir, _ = finished
    other = small.copy_and_resolve_references()
    other.collected.conversation.dialogue = {"max_turns": 2}
    with pytest.raises(InputError, match=r"collected with max_turns=8, .*config\.collected\.conv"):
        running.run(Plan(other, workdir, ARMS), workdir, keep_models=False)


def test_results_of_other_captions_are_refused(finished, small):
    plan, workdir, _ = finished
    file = plan.captions_file("conversation")
    said = file.read_text()
    file.write_text(said.replace("top", "cap"))
    try:
        with pytest.raises(InputError, match=r"conversation\.jsonl was another"):
            running.run(Plan(small, workdir, ARMS), workdir, keep_models=False)
    finally:
        file.write_text(said)


def test_captions_that_are_cut_are_refused(small, tmp_path):
    config = small.copy_and_resolve_references()
    config.experiment.data.max_tokens = 4
    plan = Plan(
        config,
        tmp_path,
        {axis: arms[-1:] for axis, arms in ARMS.items()}
        | {"captions": ("category",), "embeddings": ("image",)},
    )
    with pytest.raises(InputError, match="cuts 100 % of the captions of cells/category"):
        running.run(plan, tmp_path, keep_models=False)


@pytest.mark.parametrize("kind", ["demo", "df2"])
def test_the_shipped_grid_is_possible(kind, tmp_path):
    config = values(kind)
    config.experiment.init_from = str(tmp_path)
    config.experiment.data.tokenizer = "bert-base-uncased"
    plan = Plan(config, tmp_path)
    arms = {name: {getattr(cell, name) for cell in plan.cells} for name in ("captions", "objects")}
    assert len(arms["captions"]) >= 3 and len(arms["objects"]) == 2
    assert len(plan.seeds) >= 3


@pytest.mark.parametrize("captions", ["category", "captioner", "true"])
@pytest.mark.parametrize("objects", ["box", "regions"])
def test_arms_that_are_not_run_by_default_are_possible_too(captions, objects, tmp_path):
    plan = Plan(values(), tmp_path, {"captions": (captions,), "objects": (objects,)})
    assert all(cell.objects == objects for cell in plan.cells)


@pytest.mark.parametrize(
    "subset, message",
    [
        ({"captions": ("haiku",)}, "captions has no arm 'haiku': there are captioner, category"),
        ({"embeddings": ("smell",)}, "embeddings has no arm 'smell'"),
        ({"seeds": (0, 1, 0)}, "--seeds names one twice: 0, 1, 0"),
        ({"objects": ("box", "box")}, "--objects names one twice"),
        (
            {"captions": ("none", "template"), "embeddings": ("image", "fusion")},
            "trained with conversation and box and fine_tuned .* alone",
        ),
        (
            {"captions": ("template",), "embeddings": ("fusion",)},
            "trained with conversation and box and fine_tuned .* alone",
        ),
    ],
)
def test_an_arm_that_does_not_exist_is_named(subset, message, tmp_path):
    with pytest.raises(InputError, match=message):
        Plan(values(), tmp_path, subset)


def test_an_arm_is_overridden_alone():
    config = values()
    config.captions.category.loss.itc = 9.0
    config.objects.box.loss.box_l1 = 9.0
    config.embeddings.joined.changes.data.captions.dropout = 0.9
    others = [arm.loss.itc for name, arm in config.captions.items() if name != "category"]
    assert 9.0 not in others and config.objects.regions.loss.box_l1 != 9.0
    assert config.embeddings.fusion.changes.data.captions.dropout == 0.3


def test_an_impossible_cell_is_refused_before_the_first_one_runs(tmp_path):
    config = values()
    config.captions.category.loss.itc = -1.0
    with pytest.raises(InputError, match=r"category-none-zero_shot.*: loss\.itc=-1\.0"):
        Plan(config, tmp_path)


def test_unfinished_ablations_have_no_report(small, tmp_path):
    plan = Plan(small, tmp_path, ARMS)
    dataset = open_dataset(plan.config_of(plan.readings()[0]).data)
    with pytest.raises(InputError, match="has no results"):
        write_results(plan, dataset, tmp_path, tuple(small.read_by))


def test_mistakes_are_one_line(tmp_path):
    command = [sys.executable, "tools/run_ablation.py", "--config=configs/ablation.py"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'x'}", "--captions=haiku"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "no arm 'haiku'" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_what_sigterm_stopped_is_no_result(small, tmp_path, monkeypatch):
    monkeypatch.setattr(running.Experiment, "train", lambda self: False)
    with pytest.raises(SystemExit):
        running.run(Plan(small, tmp_path, ARMS), tmp_path, keep_models=True)
    assert not (tmp_path / "cells").exists()
