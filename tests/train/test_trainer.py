"""Runs and trainers on the mini dataset: training, resuming, initialising, and errors."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from capret_jax.checkpoints.conversion import from_reference
from capret_jax.checkpoints.converted import save_converted
from capret_jax.checkpoints.loading import load_model
from capret_jax.checkpoints.lock import sole_writer
from capret_jax.checkpoints.state_dict import read_state_dict
from capret_jax.checkpoints.training import Checkpoints
from capret_jax.config import SIZES, DataConfig, LossConfig, MeshConfig
from capret_jax.errors import InputError
from capret_jax.serve.encoder import Encoder
from capret_jax.train import trainer
from capret_jax.train.run import Run
from capret_jax.train.trainer import Trainer
from tests.conftest import DATA


@pytest.fixture
def config(tiny_config):
    """The shared run's config without evaluations during training."""
    loop = dataclasses.replace(tiny_config.loop, evaluate_every=0)
    return dataclasses.replace(tiny_config, loop=loop)


def final_state(config, workdir):
    run = Run(config, workdir)
    return jax.device_get(run.checkpoints.restore(run.abstract_state))


def assert_same(here, there):
    jax.tree.map(np.testing.assert_array_equal, here, there)


def test_the_curve_has_losses_speed_and_retrieval(trained_dir):
    lines = [json.loads(line) for line in (trained_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 6, 6]
    terms = {f"loss/{t}" for t in ("itc", "itm", "mlm", "vqa", "box_l1", "box_giou", "arcface")}
    assert terms | {"loss", "images_per_second"} <= lines[0].keys()
    assert lines[-2]["loss"] < lines[0]["loss"]
    assert lines[-1].keys() >= {"retrieval/mAP", "retrieval/top_1", "retrieval/top_20"}


def test_a_finished_run_is_not_trained_again(config, trained_dir, capsys):
    before = (trained_dir / "metrics.jsonl").read_text()
    assert Trainer(Run(config, trained_dir)).train()
    assert "trained to step 6 already" in capsys.readouterr().out
    assert (trained_dir / "metrics.jsonl").read_text() == before


def damage(folder, cut):
    """Shortens the large files of a checkpoint."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[: cut(path.stat().st_size)])


def test_a_run_with_a_damaged_checkpoint_resumes_from_the_one_before(config, trained_dir, tmp_path):
    shutil.copytree(trained_dir / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(trained_dir / "vocab.txt", tmp_path)
    damage(tmp_path / "checkpoints" / "6", lambda size: size // 2)
    # A reader changes nothing, and does not take another checkpoint for the damaged one.
    with pytest.raises(InputError, match="6 is damaged .* train with this --workdir to go on"):
        Run(config, tmp_path).state_to_evaluate()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"3", "6"}
    with pytest.warns(UserWarning, match="6 is damaged .* going on from the checkpoint before"):
        assert Trainer(Run(config, tmp_path)).train()
    assert (tmp_path / "checkpoints" / "damaged_6").is_dir()
    assert_same(final_state(config, tmp_path), final_state(config, trained_dir))


def test_without_any_readable_checkpoint_there_is_an_error(config, trained_dir, tmp_path):
    shutil.copytree(trained_dir / "checkpoints" / "6", tmp_path / "checkpoints" / "6")
    shutil.copy(trained_dir / "vocab.txt", tmp_path)
    damage(tmp_path / "checkpoints" / "6", lambda size: 0)
    run = Run(config, tmp_path)
    with pytest.raises(InputError, match="6 is damaged .*: no other is left"):
        run.checkpoints.restore(run.abstract_state)
    with pytest.raises(InputError, match="6 is damaged .*: no other is left"):
        Trainer(run).train()


def test_sigterm_saves_and_the_next_call_ends_with_the_same_bits(
    config, trained_dir, tmp_path, monkeypatch, capsys
):
    original = trainer.make_step

    def make_step(setup):
        step = original(setup)

        def interrupted(state, batch):
            if int(state.step) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(state, batch)

        return interrupted

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "make_step", make_step)
        assert Trainer(Run(config, tmp_path)).train() is False
    assert "stopped by SIGTERM at step 2 of 6" in capsys.readouterr().out
    assert Trainer(Run(config, tmp_path)).train() is True
    assert "resuming from step 2 of 6" in capsys.readouterr().out
    assert_same(final_state(config, tmp_path), final_state(config, trained_dir))


def test_sigterm_while_the_last_checkpoint_is_written_keeps_it(
    config, trained_dir, tmp_path, monkeypatch, capsys
):
    original = Checkpoints.wait

    def interrupted(checkpoints):
        os.kill(os.getpid(), signal.SIGTERM)
        original(checkpoints)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "wait", interrupted)
        assert Trainer(Run(config, tmp_path)).train() is False
    assert "stopped by SIGTERM at step 6 of 6, saved" in capsys.readouterr().out
    assert_same(final_state(config, tmp_path), final_state(config, trained_dir))


def test_a_checkpoint_of_another_config_is_refused(config, trained_dir):
    with pytest.raises(InputError, match=r"config\.seed was 0 and is 1"):
        Run(dataclasses.replace(config, seed=1), trained_dir)


def test_a_run_starts_from_another_runs_model(config, trained_dir, tmp_path, capsys):
    start = dataclasses.replace(config, init_from=str(trained_dir))
    state = Run(start, tmp_path).initial_state()
    assert f"starting from {trained_dir}, a pretrain checkpoint" in capsys.readouterr().out
    saved = final_state(config, trained_dir)
    assert_same(saved.average, state.params["model"])
    assert_same(state.average, state.params["model"])
    assert not np.array_equal(state.params["arcface"], saved.params["arcface"])
    assert int(state.step) == 0


def test_what_was_fresh_at_the_start_stays_so(config, trained_dir, monkeypatch):
    run = Run(config, trained_dir)
    saved = run.checkpoints.metadata()
    assert saved["fresh"] == list(run.setup.fresh) == []  # the run has no rate for fresh parameters
    optimizer = dataclasses.replace(config.optimizer, fresh_multiplier=2.0)
    config = dataclasses.replace(config, optimizer=optimizer, init_from="deleted since")
    saved |= {"config": dataclasses.asdict(config), "fresh": ["itm_head/up/kernel"]}
    monkeypatch.setattr(Checkpoints, "metadata", lambda _: saved)
    assert Run(config, trained_dir).setup.fresh == ("itm_head/up/kernel",)


def test_raw_answers_and_the_prompt_are_in_the_vocabulary(config, trained_dir, tmp_path):
    assert "-" in (trained_dir / "vocab.txt").read_text().splitlines()  # of window-pane
    captions = dataclasses.replace(config.data.captions, prompt="behold: a")
    data = dataclasses.replace(config.data, captions=captions)
    run = Run(dataclasses.replace(config, data=data), tmp_path)
    batch = next(run.training_batches())
    prompt = run.encode.tokenizer("behold: a")["input_ids"][:-1]
    assert run.encode.tokenizer.unk_token_id not in prompt
    assert (batch.masked_ids[:, : len(prompt)] == prompt).all()
    assert not (batch.token_ids[:, : len(prompt)] == prompt).all(axis=1).any()


def test_a_start_from_a_model_of_another_cleaning_is_told(config, trained_dir, tmp_path, capsys):
    data = dataclasses.replace(config.data, cleaning="earlier")
    Run(dataclasses.replace(config, init_from=str(trained_dir), data=data), tmp_path)
    printed = capsys.readouterr().out
    assert "trained on texts of data.cleaning='x2vlm', and this run has 'earlier'" in printed


def swap_words(path):
    lines = path.read_text().splitlines()
    lines[-1], lines[-2] = lines[-2], lines[-1]
    path.write_text("\n".join(lines) + "\n")


def test_a_vocabulary_belongs_to_its_model(config, trained_dir, tmp_path):
    """It comes with the model that a run starts from, and may not change afterwards."""
    start = dataclasses.replace(config, init_from=str(trained_dir))
    # Other captions, from which another vocabulary would be built.
    captions = dataclasses.replace(config.data.captions, fields=("category",))
    start = dataclasses.replace(start, data=dataclasses.replace(config.data, captions=captions))
    own = tmp_path / "started"
    own.mkdir()
    Run(start, own)
    vocabulary = (trained_dir / "vocab.txt").read_bytes()
    assert (own / "vocab.txt").read_bytes() == vocabulary
    swap_words(own / "vocab.txt")
    with pytest.raises(InputError, match="vocab.txt does not have the tokens"):
        Run(start, own)

    shutil.copytree(trained_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("evaluation"))
    swap_words(tmp_path / "copy" / "vocab.txt")
    with pytest.raises(InputError, match="vocab.txt does not have the tokens"):
        Run(config, tmp_path / "copy")
    with pytest.raises(InputError, match="vocab.txt does not have the tokens"):
        Encoder.from_dir(tmp_path / "copy")


def test_a_lost_vocabulary_is_made_again_by_training_alone(config, trained_dir, tmp_path):
    shutil.copytree(trained_dir, tmp_path, dirs_exist_ok=True)
    own = tmp_path / "vocab.txt"
    own.unlink()
    with pytest.raises(InputError, match=r"no BERT tokenizer at .*vocab\.txt"):
        Run(dataclasses.replace(config, mode="evaluate"), tmp_path)
    assert not own.exists()
    Run(config, tmp_path)
    assert own.read_bytes() == (trained_dir / "vocab.txt").read_bytes()


def test_an_old_vocabulary_in_a_fresh_workdir_is_refused(config, tmp_path):
    Run(config, tmp_path)
    Run(config, tmp_path)  # interrupted before its first checkpoint
    swap_words(tmp_path / "vocab.txt")
    with pytest.raises(InputError, match="is not the vocabulary of this run's captions"):
        Run(config, tmp_path)


def test_a_run_of_other_items_does_not_go_on(config, trained_dir, tmp_path, monkeypatch):
    shutil.copytree(trained_dir, tmp_path, dirs_exist_ok=True)
    run = Run(config, tmp_path)
    other = run.fingerprints | {"items": {"items": 9, "identities": 3, "sha256": "other"}}
    monkeypatch.setitem(vars(run), "fingerprints", other)
    with pytest.raises(InputError, match="was trained on .* these are 9 of 3, or others"):
        Trainer(run).train()


def test_a_second_run_in_a_workdir_is_refused(config, trained_dir, tmp_path):
    run = Run(config, tmp_path)
    with (
        sole_writer(tmp_path),
        pytest.raises(InputError, match="another run is training"),
    ):
        Trainer(run).train()


def test_a_run_starts_from_a_converted_model_at_its_own_image_size(config, tmp_path, capsys):
    converted = from_reference(read_state_dict(DATA / "x2vlm_tiny_vqa.th"))
    save_converted(tmp_path / "converted", converted)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dress"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    start = dataclasses.replace(
        config,
        model=dataclasses.replace(SIZES["tiny"], image_size=32),
        data=dataclasses.replace(config.data, tokenizer=str(tmp_path / "vocab.txt")),
        loss=LossConfig(matching_group=2),
        init_from=str(tmp_path / "converted"),
    )
    run = Run(start, tmp_path / "run")
    state = run.initial_state()
    assert "fresh: bbox_head, itm_head, mlm_head" in capsys.readouterr().out
    ours, given = state.params["model"], converted.params
    np.testing.assert_array_equal(ours["vision"]["cls_token"], given["vision"]["cls_token"])
    table = ours["vision"]["blocks"]["0"]["attention"]["relative_position_bias"]
    assert table.shape == (12, 4)
    # Parts that the file does not hold depend on the run's seed, not on the conversion's.
    fresh = run.fresh_state().params["model"]
    assert_same(ours["itm_head"], fresh["itm_head"])
    assert jax.tree.structure(ours) == jax.tree.structure(fresh)
    # Neither a loss of this run nor the checkpoint trained it.
    untrained = {path.split("/")[0] for path in run.untrained_parameters()}
    assert untrained == {"mlm_head"}


def test_an_answer_decoder_starts_from_the_encoders(config, tmp_path, capsys):
    converted = from_reference(read_state_dict(DATA / "x2vlm_tiny_pretrain.th"))
    save_converted(tmp_path / "converted", converted)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dress"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    start = dataclasses.replace(
        config,
        model=dataclasses.replace(SIZES["tiny"], image_size=32, decoder_layers=2),
        loss=dataclasses.replace(config.loss, locations=0.0),
        data=dataclasses.replace(config.data, tokenizer=str(tmp_path / "vocab.txt")),
        init_from=str(tmp_path / "converted"),
    )
    run = Run(start, tmp_path / "run")
    model = run.initial_state().params["model"]
    assert (
        "a pretrain checkpoint; decoder layers 0-1 from text-encoder layers 2-3, decoder "
        "embeddings and head from the text encoder; "
        "fresh: decoder's cross-attention keys and values\n"
    ) in capsys.readouterr().out
    assert_same(model["decoder"]["embeddings"], converted.params["text"]["embeddings"])
    # Without the loss of answers, the copies would never learn to answer.
    assert not run.untrained_parameters()
    silent = dataclasses.replace(start, loss=LossConfig(matching_group=2))
    untrained = Run(silent, tmp_path / "silent").untrained_parameters()
    assert {path.split("/")[0] for path in untrained} == {"decoder"}


def test_the_averaged_model_is_loaded(config, trained_dir):
    model = load_model(trained_dir)
    state = final_state(config, trained_dir)
    assert_same(model.params, state.average)
    kernels = (tree["vision_proj"]["kernel"] for tree in (state.average, state.params["model"]))
    assert not np.array_equal(*kernels)
    assert model.encode_image(np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 5, 64)


def test_parts_that_no_loss_trained_are_named_when_loaded(trained_dir, tmp_path):
    shutil.copytree(trained_dir / "checkpoints" / "6", tmp_path / "checkpoints" / "6")
    changed = 0
    for path in (tmp_path / "checkpoints" / "6").rglob("*"):
        if path.is_file() and b'"untrained": []' in (content := path.read_bytes()):
            names = b'"untrained": ["mlm_head/dense/kernel"]'
            path.write_bytes(content.replace(b'"untrained": []', names))
            changed += 1
    assert changed == 1
    with pytest.warns(UserWarning, match="never trained mlm_head: random"):
        load_model(tmp_path)


def test_zero_shot_evaluation_needs_a_projection(config, tmp_path):
    converted = from_reference(read_state_dict(DATA / "x2vlm_tiny_caption.th"))
    save_converted(tmp_path / "converted", converted)
    start = dataclasses.replace(
        config,
        model=dataclasses.replace(SIZES["tiny"], image_size=32),
        loss=LossConfig(matching_group=2),
        init_from=str(tmp_path / "converted"),
    )
    with pytest.raises(InputError, match="holds no vision_proj"):
        Run(start, tmp_path / "run").state_to_evaluate()
    with pytest.raises(InputError, match="is a converted checkpoint: choose another folder"):
        Run(start, tmp_path / "converted")


def test_a_start_of_another_size_is_refused(config, trained_dir, tmp_path):
    wide = dataclasses.replace(config.model, embed_dim=64)
    start = dataclasses.replace(config, model=wide, init_from=str(trained_dir))
    with pytest.raises(
        InputError, match=r"embed_dim=64 does not fit .* which has 32; set --config"
    ):
        Run(start, tmp_path)
    decoder = dataclasses.replace(config.model, decoder_layers=2)
    with pytest.raises(InputError, match="decoder_layers=2 does not fit"):
        Run(dataclasses.replace(start, model=decoder), tmp_path)


def test_evaluating_without_a_model_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="no checkpoint to evaluate"):
        Run(config, tmp_path).state_to_evaluate()


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
        Run(dataclasses.replace(config, **change), tmp_path)


def test_an_image_that_does_not_decode_is_named(config, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("truncated")

    run = Run(config, tmp_path)
    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(InputError, match=r"image \d+ does not decode"):
        Trainer(run).train()
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
