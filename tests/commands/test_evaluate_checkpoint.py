"""capret-evaluate: converted checkpoints on the tiny sets of each task, and refusals by name."""

import dataclasses
import pathlib

import jax
import pytest

from capret_jax.checkpoints.conversion import Converted, Report
from capret_jax.checkpoints.converted import save_converted
from capret_jax.config import EvaluationConfig, MeshConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.models.x2vlm import init_params
from capret_jax.tasks.checkpoint_run import CheckpointRun, CheckpointSettings
from capret_jax.tasks.evaluators.suite import check_replaceable
from tests.commands.in_process import call
from tests.small_model import ANSWERING_MODEL, SMALL_MODEL
from tests.tasks.files import WRITERS
from tests.tasks.runs import read_json, tiny_run

COMMAND = "capret_jax.commands.evaluate_checkpoint"
KINDS = {"retrieval": SMALL_MODEL, "vqa": ANSWERING_MODEL, "caption_mlm": SMALL_MODEL}
# Kind -> name in the file -> parameter that it lacks.
MISSING = {
    "caption_mlm": {"bbox": "bbox_head/up/kernel", "itm": "itm_head/up/kernel"},
    "vqa": {"vision_proj": "vision_proj/kernel"},
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory, mesh):
    """Kind -> converted checkpoint with random parameters."""
    folder = tmp_path_factory.mktemp("converted")
    tiny_run(WRITERS["retrieval"](folder), folder, mesh)
    complete = init_params(ANSWERING_MODEL, jax.random.key(0))
    for kind, model in KINDS.items():
        report = Report(kind, "tiny", model.image_size, missing=MISSING.get(kind, {}))
        params = {name: complete[name] for name in complete if name != "decoder" or kind == "vqa"}
        made = Converted(params, model, report)
        save_converted(folder / kind, made, vocabulary=folder / "vocab.txt")
    return folder


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


def evaluate(checkpoint, name, folder, *more):
    task = WRITERS[name](folder)
    files = [
        f"--{key}={getattr(task, key)}"
        for key in ("answers", "refs", "instances")
        if getattr(task, key)
    ]
    arguments = [f"--task={name}", f"--data={task.test}", f"--images={task.images}", *files]
    return call(COMMAND, checkpoint, *arguments, "--batch_size=8", *more)


@pytest.mark.parametrize(
    ("kind", "name", "metric", "result"),
    [
        ("retrieval", "retrieval", "r_mean", None),
        ("retrieval", "grounding", "accuracy", "boxes.json"),
        ("vqa", "vqa", "accuracy", "result.json"),
        ("caption_mlm", "captioning", "CIDEr", "captions.json"),
    ],
)
def test_a_converted_checkpoint_is_evaluated(kind, name, metric, result, converted, tmp_path):
    out = tmp_path / "out"
    code, printed, errors = evaluate(converted / kind, name, tmp_path, f"--out={out}")
    assert code == 0, errors
    metrics = read_json(out / "metrics.json")
    assert metrics["left_out"] == 0 and f"{metric:18}{metrics[metric]:.3f}" in printed
    assert {path.name for path in out.iterdir()} == {"metrics.json", *([result] if result else [])}
    check_replaceable(out, "--out")


@pytest.mark.parametrize(
    ("kind", "name", "part"),
    [
        ("retrieval", "vqa", "no decoder"),
        ("retrieval", "nlvr2", "no nlvr_head"),
        ("retrieval", "captioning", "mlm_head of"),
        ("caption_mlm", "grounding", "no bbox_head"),
        ("caption_mlm", "retrieval", "no itm_head"),
        ("vqa", "retrieval", "no vision_proj"),
    ],
)
def test_a_missing_part_is_named(kind, name, part, converted, tmp_path):
    code, _, errors = evaluate(converted / kind, name, tmp_path)
    assert code == 2 and part in errors and kind in errors and len(errors.splitlines()) == 1
    assert not (converted / kind / f"evaluation_{name}").exists()


def test_missing_pictures_are_counted_or_refused(converted, tmp_path):
    task = WRITERS["grounding"](tmp_path)
    lost = pathlib.Path(task.images) / read_json(pathlib.Path(task.test))[0]["image"]
    lost.rename(lost.with_suffix(".lost"))
    arguments = [f"--{key}={getattr(task, key)}" for key in ("images", "refs", "instances")]
    arguments += ["--task=grounding", f"--data={task.test}", f"--out={tmp_path / 'out'}"]
    arguments += ["--batch_size=8", converted / "retrieval"]
    code, _, errors = call(COMMAND, *arguments)
    assert code == 2 and "missing" in errors
    code, printed, errors = call(COMMAND, *arguments, "--allow_missing")
    assert code == 0, errors
    assert read_json(tmp_path / "out" / "metrics.json")["left_out"] == 2
    assert "2 of 16 examples are left out" in printed


def test_a_batch_that_does_not_divide_is_refused(converted, tmp_path):
    task = WRITERS["retrieval"](tmp_path)
    arguments = ["--task=retrieval", f"--data={task.test}", f"--images={task.images}"]
    code, _, errors = call(COMMAND, converted / "retrieval", *arguments, "--batch_size=9")
    assert code == 2 and "--batch_size=9" in errors


def test_captions_begin_with_the_prompt_of_the_checkpoint(converted, tmp_path):
    code, _, errors = evaluate(
        converted / "caption_mlm", "captioning", tmp_path, "--prompt=zebra", "--out=out"
    )
    assert code == 2 and "zebra" in errors
    task = WRITERS["captioning"](tmp_path)
    for settings, prompt in (
        (CheckpointSettings(), "a picture of"),
        (CheckpointSettings(prompt=""), ""),
    ):
        opened = CheckpointRun.open(
            converted / "caption_mlm",
            task,
            dataclasses.replace(settings, evaluation=EvaluationConfig(batch_size=8)),
        )
        assert opened.config.data.captions.prompt == prompt


def test_a_folder_with_other_files_is_not_replaced(converted, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    kept = tmp_path / "mine" / "thesis.txt"
    kept.write_text("years of work")
    monkeypatch.chdir(kept.parent)
    for out in (".", kept.parent, kept):
        code, _, errors = evaluate(converted / "retrieval", "retrieval", tmp_path, f"--out={out}")
        assert code == 2 and "choose another folder with --out" in errors
        assert len(errors.splitlines()) == 1 and kept.read_text() == "years of work"


@pytest.mark.parametrize(
    "flag, owner",
    [
        ("--cache_mb=5", "retrieval"),
        ("--cache_dir=files", "retrieval"),
        ("--prompt=a", "captioning"),
    ],
)
def test_a_flag_of_another_task_is_refused(flag, owner, converted, tmp_path):
    code, _, errors = evaluate(converted / "retrieval", "grounding", tmp_path, flag)
    assert code == 2 and f"{flag} is of --task={owner}" in errors
