"""The whole job on the mini dataset: train, evaluate, resume, and refuse."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from capret_jax.checkpoints.conversion import from_reference
from capret_jax.checkpoints.converted import save_converted
from capret_jax.checkpoints.loading import load_model
from capret_jax.checkpoints.state_dict import read_state_dict
from capret_jax.config import (
    SIZES,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LoopConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    ReadConfig,
)
from capret_jax.errors import InputError
from capret_jax.train.experiment import Experiment
from tests.conftest import DATA, SMALL_MODEL


@pytest.fixture(scope="module")
def config(prepared_dir) -> ExperimentConfig:
    return ExperimentConfig(
        batch_size=16,
        model=SMALL_MODEL,
        data=DataConfig(
            variant="mini",
            prepared_dir=str(prepared_dir),
            views_per_identity=2,
            read=ReadConfig(threads=2, prefetch=2),
        ),
        loss=LossConfig(matching_group=2),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, ema_decay=0.9),
        loop=LoopConfig(steps=6, log_every=2, checkpoint_every=3, evaluate_every=6),
        mesh=MeshConfig(),
        evaluation=EvaluationConfig(detect=True, rerank=5),
    )


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory) -> pathlib.Path:
    """A finished run."""
    path = tmp_path_factory.mktemp("run")
    experiment = Experiment(config, path)
    experiment.train()
    experiment.evaluate()
    return path


def final_state(config, workdir):
    experiment = Experiment(config, workdir)
    return jax.device_get(experiment._checkpoints.restore(experiment._abstract))


def test_the_curve_has_losses_speed_and_retrieval(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 6, 6]
    assert {"loss", "loss/arcface", "loss/itm", "images_per_second"} <= lines[0].keys()
    assert "retrieval/mAP" in lines[-1]


def test_evaluation_leaves_what_the_contract_says(workdir):
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    names = {"mAP", "top_1", "top_5", "top_10", "top_15", "top_20", "queries", "gallery"}
    assert names <= metrics.keys()
    conditions = {"scale", "occlusion", "zoom_in", "viewpoint", "category"}
    assert metrics["by"].keys() == conditions
    for levels in metrics["by"].values():
        assert sum(level["queries"] for level in levels.values()) == metrics["queries"]
    assert {"kind", "build_seconds", "query_seconds", "recall@20"} <= metrics["index"].keys()
    assert metrics["baselines"].keys() == {"untrained model", "colour histogram"}


def test_the_official_scorer_agrees(workdir):
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    official = metrics["official"]
    for name in ("top_1", "top_5", "top_10", "top_15", "top_20", "queries"):
        assert official[name] == pytest.approx(metrics[name]), name
    assert official["missed"] == official["without_results"] == 0
    assert metrics["more_than_5_answers"]["queries"] < metrics["queries"]


def test_official_results_name_twenty_shop_items_per_query(workdir, splits):
    items = splits["validation"].items
    entries = json.loads((workdir / "evaluation" / "deepfashion2_retrieval.json").read_text())
    assert len(entries) == ((items["style"] > 0) & ~items.is_shop).sum()
    shops = set(items["image_id"][items.is_shop].tolist())
    for entry in entries:
        assert set(entry["gallery_image_id"]) <= shops
        expected = min(20, items.is_shop.sum())
        assert len(entry["gallery_image_id"]) == len(entry["gallery_bbox"]) == expected


def test_detection_and_reranking_are_measured_and_reported(workdir):
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    detection, reranked = metrics["detection"], metrics["reranked"]
    assert 0 <= detection["AP"] <= detection["AP50"] <= 1
    threshold = json.loads((workdir / "detection.json").read_text())["threshold"]
    assert detection["threshold"] == threshold
    assert reranked["k"] == 5 and reranked["queries"] == metrics["queries"]
    # Beyond the first five nothing changes places.
    assert reranked["top_20"] == metrics["top_20"] and reranked["top_5"] == metrics["top_5"]
    page = (workdir / "evaluation" / "report.html").read_text()
    assert "Re-ranking" in page and "Garments found by phrases" in page


def test_boxes_are_found_or_read_but_not_both():
    with pytest.raises(InputError, match="set one of them"):
        EvaluationConfig(detect=True, detections="found.json")


def test_the_report_is_one_file_with_pictures(workdir):
    page = (workdir / "evaluation" / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') > 12
    assert "http://" not in page and "https://" not in page


def test_a_finished_run_is_not_trained_again(config, workdir, capsys):
    before = (workdir / "metrics.jsonl").read_text()
    Experiment(config, workdir).train()
    assert "trained to step 6 already" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_run_with_an_unreadable_checkpoint_resumes_from_the_one_before(config, workdir, tmp_path):
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(workdir / "vocab.txt", tmp_path)
    for path in (tmp_path / "checkpoints" / "6").rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match="6 cannot be read .* going on from the checkpoint before"):
        assert int(final_state(config, tmp_path).step) == 3
    assert (tmp_path / "checkpoints" / "unreadable_6").is_dir()
    assert Experiment(config, tmp_path).train()
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(config, tmp_path),
        final_state(config, workdir),
    )


def test_without_any_readable_checkpoint_there_is_an_error(config, workdir, tmp_path):
    shutil.copytree(workdir / "checkpoints" / "6", tmp_path / "checkpoints" / "6")
    shutil.copy(workdir / "vocab.txt", tmp_path)
    for path in (tmp_path / "checkpoints" / "6").rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            path.write_bytes(b"")
    experiment = Experiment(config, tmp_path)
    with pytest.raises(InputError, match="6 cannot be read, and no checkpoint before it"):
        experiment._checkpoints.restore(experiment._abstract)


def test_sigterm_saves_and_the_next_call_ends_with_the_same_bits(
    config, workdir, tmp_path, monkeypatch, capsys
):
    original = Experiment.make_step

    def make_step(self):
        step = original(self)

        def interrupted(state, batch):
            if int(state.step) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(state, batch)

        return interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "make_step", make_step)
        assert Experiment(config, tmp_path).train() is False
    assert "stopped by SIGTERM at step 2 of 6" in capsys.readouterr().out
    assert Experiment(config, tmp_path).train() is True
    assert "resuming from step 2 of 6" in capsys.readouterr().out
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(config, tmp_path),
        final_state(config, workdir),
    )


def test_a_checkpoint_of_another_config_is_refused(config, workdir):
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(InputError, match=r"config\.seed was 0 and is 1"):
        Experiment(other, workdir)


def test_a_run_starts_from_another_runs_model(config, workdir, tmp_path, capsys):
    start = dataclasses.replace(config, init_from=str(workdir))
    state = Experiment(start, tmp_path).initial_state()
    assert f"starting from {workdir}, a pretrain checkpoint" in capsys.readouterr().out
    saved = final_state(config, workdir)
    trained, ours = dict(saved.average), dict(state.params["model"])
    # No loss trained the MLM head: this run draws its own.
    heads = [model.pop("mlm_head")["dense"]["kernel"] for model in (ours, trained)]
    assert not np.array_equal(*heads)
    jax.tree.map(np.testing.assert_array_equal, ours, trained)
    jax.tree.map(np.testing.assert_array_equal, state.average, state.params["model"])
    assert not np.array_equal(state.params["arcface"], saved.params["arcface"])
    assert int(state.step) == 0


def test_a_run_starts_from_a_converted_model_at_its_own_image_size(config, tmp_path, capsys):
    converted = from_reference(read_state_dict(DATA / "x2vlm_tiny_vqa.th"))
    save_converted(tmp_path / "converted", converted)
    model = dataclasses.replace(SIZES["tiny"], image_size=32)
    data = dataclasses.replace(config.data, max_tokens=12, tokenizer=str(tmp_path / "vocab.txt"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dress"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    start = dataclasses.replace(
        config, model=model, data=data, init_from=str(tmp_path / "converted")
    )
    experiment = Experiment(start, tmp_path / "run")
    state = experiment.initial_state()
    assert "fresh: bbox_head, itm_head, mlm_head" in capsys.readouterr().out
    ours, given = state.params["model"], converted.params
    np.testing.assert_array_equal(ours["vision"]["cls_token"], given["vision"]["cls_token"])
    table = ours["vision"]["blocks"]["0"]["attention"]["relative_position_bias"]
    assert table.shape == (12, 4)
    # What the file did not hold depends on the run's seed, not on the conversion's.
    fresh = experiment.fresh_state().params["model"]
    jax.tree.map(np.testing.assert_array_equal, ours["itm_head"], fresh["itm_head"])
    assert jax.tree.structure(ours) == jax.tree.structure(fresh)


def test_the_average_is_loaded_and_parts_that_no_loss_trained_are_named(config, workdir):
    with pytest.warns(UserWarning, match="never trained mlm_head: random"):
        model = load_model(workdir)
    state = final_state(config, workdir)
    jax.tree.map(np.testing.assert_array_equal, model.params, state.average)
    assert not np.array_equal(
        state.average["vision_proj"]["kernel"], state.params["model"]["vision_proj"]["kernel"]
    )
    assert model.encode_image(np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 5, 64)


def test_zero_shot_needs_a_projection(config, tmp_path):
    converted = from_reference(read_state_dict(DATA / "x2vlm_tiny_caption.th"))
    save_converted(tmp_path / "converted", converted)
    data = dataclasses.replace(config.data, max_tokens=12)
    start = dataclasses.replace(
        config,
        model=dataclasses.replace(SIZES["tiny"], image_size=32),
        data=data,
        init_from=str(tmp_path / "converted"),
    )
    with pytest.raises(InputError, match="holds no vision_proj"):
        Experiment(start, tmp_path / "run").evaluate()
    with pytest.raises(InputError, match="is a converted checkpoint: choose another folder"):
        Experiment(start, tmp_path / "converted")


def test_a_start_of_another_size_is_refused(config, workdir, tmp_path):
    wide = dataclasses.replace(config.model, embed_dim=64)
    start = dataclasses.replace(config, model=wide, init_from=str(workdir))
    with pytest.raises(
        InputError, match=r"embed_dim=64 does not fit .* which has 32; set --config"
    ):
        Experiment(start, tmp_path)
    decoder = dataclasses.replace(config.model, decoder_layers=2)
    with pytest.raises(InputError, match="decoder_layers=2 does not fit"):
        Experiment(dataclasses.replace(start, model=decoder), tmp_path)


def test_evaluating_nothing_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="no checkpoint to evaluate"):
        Experiment(config, tmp_path).evaluate()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mesh": MeshConfig(fsdp=3)}, "fsdp=3 .* does not match 8 devices"),
        ({"batch_size": 12}, r"batch_size=12 does not divide over .* 8 parts"),
        ({"loss": LossConfig(matching_group=3)}, "matching_group=3 does not divide the 2 items"),
        (
            {"accumulation": 3},
            r"batch_size=16 does not .*accumulation=3; make it a multiple of 24",
        ),
        ({"batch_size": 32}, "needs 16 identities"),
        ({"data": DataConfig(prepared_dir="/proc/nowhere")}, "prepared_dir='/proc/nowhere' cannot"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        Experiment(dataclasses.replace(config, **change), tmp_path)


def test_an_image_that_does_not_decode_is_named(config, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("truncated")

    experiment = Experiment(config, tmp_path)
    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(InputError, match=r"image \d+ does not decode"):
        experiment.train()
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
