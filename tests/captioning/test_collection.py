"""Captions of a dataset, by a model that was trained a little; killed and resumed."""

import collections
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from capret_jax.captioning import collection
from capret_jax.captioning.captioner import Captioner
from capret_jax.captioning.collection import collect_captions
from capret_jax.captioning.config import CollectConfig
from capret_jax.captioning.conversation import ConversationConfig
from capret_jax.checkpoints.conversion import from_reference
from capret_jax.checkpoints.converted import save_converted
from capret_jax.checkpoints.state_dict import read_state_dict
from capret_jax.config import (
    DataConfig,
    EmbeddingConfig,
    ExperimentConfig,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
)
from capret_jax.data.captions import load_captions
from capret_jax.data.tokenizer import build_vocabulary
from capret_jax.distributed.part import Part
from capret_jax.errors import InputError
from capret_jax.evaluation.suite import EvaluationSuite
from capret_jax.train.run import Run
from capret_jax.train.trainer import Trainer
from tests.captioning.conftest import ANSWERING, serve, valid_reply  # noqa: F401
from tests.conftest import DATA

ROOT = pathlib.Path(__file__).parents[2]
# After two steps of training no answer is probable: every answer is a fact.
CONVERSATION = ConversationConfig(max_turns=3, sure=0.0)


@pytest.fixture(scope="module")
def data(prepared_dir) -> DataConfig:
    return DataConfig(
        variant="mini", prepared_dir=str(prepared_dir), views_per_identity=2, max_tokens=24
    )


@pytest.fixture(scope="module")
def collected(data, trained_dir, tmp_path_factory):
    """File of all items' captions by the scripted questioner, and the summary."""
    out = tmp_path_factory.mktemp("captions") / "script.jsonl"
    return out, collect_captions(data, trained_dir, out, CollectConfig(dialogue=CONVERSATION))


def test_all_items_of_both_splits_are_captioned(collected, splits):
    out, summary = collected
    assert summary["items"] == sum(len(split.items) for split in splits.values())
    assert summary["unfinished"] == summary["already"] == 0
    for name, split in splits.items():
        captions = load_captions(str(out), split.items, name)
        assert all(len(texts) == 1 and texts[0] for texts in captions)


def test_summary_has_calibration_and_precision_of_annotated_topics(collected):
    summary = collected[1]
    calibration = summary["calibration"]
    topics = {"category", "sleeve", "colour", "pattern", "print", "neckline"}
    assert calibration["accuracy"].keys() == topics
    assert calibration["error"] <= calibration["error_before"] + 0.02
    assert summary["precision"].keys() <= topics and summary["precision"]
    assert summary["questions"] == pytest.approx(3.0)


def test_second_call_has_nothing_to_do(collected, data, trained_dir):
    out, summary = collected
    before = out.read_bytes()
    again = collect_captions(data, trained_dir, out, CollectConfig(dialogue=CONVERSATION))
    assert (again["items"], again["already"]) == (0, summary["items"])
    assert out.read_bytes() == before


def test_parts_together_equal_the_whole(collected, data, trained_dir, tmp_path):
    def captions(out: pathlib.Path) -> dict[tuple, str]:
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        return {
            (line["image_id"], line["item"]): line["caption"]
            for line in lines
            if line["split"] == "validation"
        }

    parts = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    for index, out in enumerate(parts):
        config = CollectConfig(dialogue=CONVERSATION, part=Part(index, 2), splits=("validation",))
        collect_captions(data, trained_dir, out, config)
    first, second = map(captions, parts)
    assert first.keys().isdisjoint(second)
    assert first | second == captions(collected[0])


def test_oracle_captions_are_equal_for_views_of_one_identity(data, trained_dir, splits, tmp_path):
    out = tmp_path / "true.jsonl"
    collect_captions(data, trained_dir, out, CollectConfig(method="annotations"))
    items = splits["train"].items
    captions = load_captions(str(out), items, "train")
    identities = items.identities()
    for identity in np.unique(identities)[1:]:
        assert len({captions[row] for row in np.flatnonzero(identities == identity)}) == 1
    assert len(set(captions)) > 13


def test_captioner_captions_items(data, trained_dir, tmp_path):
    config = CollectConfig(method="captioner", limit=5)
    assert collect_captions(data, trained_dir, tmp_path / "own.jsonl", config)["items"] == 5


def test_the_captioner_starts_from_its_models_prompt(data, tmp_path, monkeypatch):
    """A published captioning file has one in its card, and captions of another are others."""
    prompts = []

    class Recorder(Captioner):
        def caption(self, images):
            prompts.append(self._tokenizer.decode(self._prompt))
            return ["a dress"] * len(images)

    monkeypatch.setattr(collection, "Captioner", Recorder)
    build_vocabulary(["a picture of a dress"], tmp_path / "vocab.txt", 120)
    converted = from_reference(read_state_dict(DATA / "x2vlm_tiny_caption.th"))
    config = CollectConfig(method="captioner", limit=2)
    for prompt, out in ((None, "published"), ("", "own")):
        folder = tmp_path / f"{out}-model"
        save_converted(folder, converted, vocabulary=tmp_path / "vocab.txt", prompt=prompt)
        collect_captions(data, folder, tmp_path / out, config)
    assert prompts == ["[CLS] a picture of", "[CLS]"]
    with pytest.raises(InputError, match="prompt"):
        collect_captions(data, tmp_path / "own-model", tmp_path / "published", config)


def test_collected_captions_are_used_in_embeddings(data, trained_dir, collected, tmp_path, splits):
    kind = "fusion"  # needs a projection that the initial model lacks
    out = str(collected[0])
    captions = dataclasses.replace(data.captions, file=out)
    config = ExperimentConfig(
        batch_size=16,
        init_from=str(trained_dir),
        embedding=EmbeddingConfig(kind, "generated", out),
        model=dataclasses.replace(ANSWERING, decoder_layers=0),
        data=dataclasses.replace(data, captions=captions, tokenizer=str(trained_dir / "vocab.txt")),
        loss=LossConfig(matching_group=2),
        optimizer=OptimizerConfig(warmup_steps=1),
        loop=LoopConfig(steps=2, checkpoint_every=2),
    )
    Trainer(Run(config, tmp_path)).train()
    sources = {}
    for source in ("generated", "oracle", "none"):
        embedding = EmbeddingConfig(kind, source, out if source == "generated" else "")
        run = Run(dataclasses.replace(config, embedding=embedding), tmp_path)
        EvaluationSuite(run, source).run(run.state_to_evaluate())
        metrics = json.loads((tmp_path / source / "metrics.json").read_text())
        assert metrics["embedding"] == kind
        sources[source] = metrics["captions"]["of_queries"]
    assert sources == {
        "generated": f"file {out}",
        "oracle": "annotations: category, scale, occlusion, zoom_in, viewpoint",
        "none": "none",
    }
    oracle, none = (
        json.loads((tmp_path / name / "queries.json").read_text()) for name in ("oracle", "none")
    )
    assert oracle["identity"] == none["identity"]
    assert oracle["found"] != none["found"]
    queries = ~splits["validation"].items.is_shop & (splits["validation"].items["style"] > 0)
    assert len(oracle["average_precision"]) == queries.sum()


def call(*flags: str, **options) -> subprocess.Popen:
    command = [sys.executable, "tools/collect_captions.py", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.slow
def test_killed_collection_resumes_without_repeated_requests(
    data,
    trained_dir,
    tmp_path,
    serve,  # noqa: F811
):
    """SIGKILL in the middle of conversations with a server."""
    replies, killed = collections.Counter(), []

    def reply(prompt, number):
        if not killed and number > 60:
            return 5.0  # hangs until the kill
        replies[prompt] += 1
        return valid_reply(prompt, number)

    server, out = serve(reply), tmp_path / "captions.jsonl"
    flags = [
        "--config=configs/demo.py",
        "--config.data.variant=mini",
        f"--config.data.prepared_dir={data.prepared_dir}",
        f"--model={trained_dir}",
        f"--questioner={server.url}",
        "--limit=30",
        "--max_turns=3",
        "--sure=0",
        "--workers=4",
        f"--out={out}",
    ]
    first = call(*flags)
    journal, deadline = out.with_name(out.name + ".journal"), time.monotonic() + 120

    def replies_on_disk() -> int:
        if not journal.exists():
            return 0
        return sum('"usage"' in line for line in journal.read_text().splitlines())

    while replies_on_disk() < 60 and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert replies_on_disk() == 60
    killed.append(True)
    before = sum(replies.values())
    second = call(*flags, "--prices=1,2")
    stdout, stderr = second.communicate(timeout=120)
    assert second.returncode == 0, stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 30 == len({(line["image_id"], line["item"]) for line in lines})
    # Three questions and a caption each, in both runs together.
    assert before == 60 and sum(replies.values()) == 4 * 30
    summary = json.loads(stdout[stdout.index("{") :])
    assert summary["already"] + summary["items"] == 30
    assert summary["price_per_1000_items"] > 0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"questioner": "http://127.0.0.1:9/v1"}, "127.0.0.1:9/v1 cannot be reached"),
        ({"questioner": "phi"}, "--questioner=phi is neither script"),
        ({"method": "ic3"}, "--method=ic3 condenses captions with a language model"),
        ({"method": "oracle"}, "--method=oracle is none of"),
        ({"splits": ("test",)}, "--splits has 'test'"),
        ({"limit": -1}, "--limit not negative"),
        ({"part": Part(2, 2)}, "--part=2/2 is not i/n"),
        ({"method": "captioner", "questioner": "phi"}, "--method=captioner needs no questioner"),
        ({}, "/absent is neither a converted checkpoint"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(settings, message, data, tmp_path):
    with pytest.raises(InputError, match=message):
        collect_captions(data, "/absent", tmp_path / "out.jsonl", CollectConfig(**settings))
    assert not list(tmp_path.iterdir())


def test_model_without_an_answer_decoder_is_refused(data, tmp_path):
    state = read_state_dict(DATA / "x2vlm_tiny_pretrain.th")
    save_converted(tmp_path / "plain", from_reference(state))
    with pytest.raises(InputError, match="has no answer decoder"):
        collect_captions(data, tmp_path / "plain", tmp_path / "out.jsonl", CollectConfig())
