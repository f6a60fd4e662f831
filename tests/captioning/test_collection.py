"""Captions of a dataset, by a model that was trained to answer; killed and gone on with."""

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

from capret_jax.captioning.collection import CollectConfig, collect_captions
from capret_jax.captioning.conversation import DialogueConfig
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
from capret_jax.data.captions import captions_from
from capret_jax.errors import InputError
from capret_jax.train.experiment import Experiment
from tests.captioning.conftest import ANSWERING, answering_config, sensible, serve  # noqa: F401
from tests.conftest import DATA

ROOT = pathlib.Path(__file__).parent.parent
# A model of two steps is sure of nothing.
ANYTHING = DialogueConfig(max_turns=3, sure=0.0)


@pytest.fixture(scope="module")
def data(prepared_dir) -> DataConfig:
    return DataConfig(
        variant="mini", prepared_dir=str(prepared_dir), views_per_identity=2, max_tokens=24
    )


@pytest.fixture(scope="module")
def answering_dir(data, tmp_path_factory):
    """A workdir whose model has learnt to answer and to write, a little."""
    folder = tmp_path_factory.mktemp("answering")
    Experiment(answering_config(data), folder).train()
    return folder


@pytest.fixture(scope="module")
def collected(data, answering_dir, tmp_path_factory):
    """A script's captions of all items, and what they took."""
    out = tmp_path_factory.mktemp("captions") / "script.jsonl"
    return out, collect_captions(data, answering_dir, out, CollectConfig(dialogue=ANYTHING))


def test_all_items_of_both_splits_are_captioned(collected, splits):
    out, took = collected
    assert took["items"] == sum(len(split.items) for split in splits.values())
    assert took["unfinished"] == took["already"] == 0
    for name, split in splits.items():
        captions = captions_from(str(out), split.items, name)
        assert all(len(each) == 1 and each[0] for each in captions)


def test_trust_is_measured_where_the_truth_is_known(collected):
    took = collected[1]
    calibration = took["calibration"]
    topics = {"category", "sleeve", "colour", "pattern", "print", "neckline"}
    assert calibration["accuracy"].keys() == topics
    assert calibration["error"] <= calibration["error_before"] + 0.02
    assert took["precision"].keys() <= topics and took["precision"]
    assert took["questions"] == pytest.approx(3.0)


def test_a_second_call_has_nothing_to_do(collected, data, answering_dir):
    out, took = collected
    before = out.read_bytes()
    again = collect_captions(data, answering_dir, out, CollectConfig(dialogue=ANYTHING))
    assert (again["items"], again["already"]) == (0, took["items"])
    assert out.read_bytes() == before


def test_parts_together_are_the_whole(collected, data, answering_dir, tmp_path):
    def captions(out: pathlib.Path) -> dict[tuple, str]:
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        return {
            (line["image_id"], line["item"]): line["caption"]
            for line in lines
            if line["split"] == "validation"
        }

    parts = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    for part, out in enumerate(parts):
        config = CollectConfig(dialogue=ANYTHING, part=part, parts=2, splits=("validation",))
        collect_captions(data, answering_dir, out, config)
    first, second = map(captions, parts)
    assert first.keys().isdisjoint(second)
    assert first | second == captions(collected[0])


def test_annotations_are_what_a_perfect_answerer_would_say(data, answering_dir, splits, tmp_path):
    out = tmp_path / "true.jsonl"
    collect_captions(data, answering_dir, out, CollectConfig(method="annotations"))
    items = splits["train"].items
    captions = captions_from(str(out), items, "train")
    identities = items.identities()
    for identity in np.unique(identities)[1:]:
        assert len({captions[row] for row in np.flatnonzero(identities == identity)}) == 1
    assert len(set(captions)) > 13


def test_the_captioner_writes_captions(data, answering_dir, tmp_path):
    config = CollectConfig(method="captioner", limit=5)
    assert collect_captions(data, answering_dir, tmp_path / "own.jsonl", config)["items"] == 5


def test_embeddings_read_the_collected_captions(data, answering_dir, collected, tmp_path, splits):
    kind = "fusion"  # starts with a projection that the first model lacks
    out = str(collected[0])
    captions = dataclasses.replace(data.captions, file=out)
    config = ExperimentConfig(
        batch_size=16,
        init_from=str(answering_dir),
        embedding=EmbeddingConfig(kind, "generated", out),
        model=dataclasses.replace(ANSWERING, decoder_layers=0),
        data=dataclasses.replace(
            data, captions=captions, tokenizer=str(answering_dir / "vocab.txt")
        ),
        loss=LossConfig(matching_group=2),
        optimizer=OptimizerConfig(warmup_steps=1),
        loop=LoopConfig(steps=2, checkpoint_every=2),
    )
    Experiment(config, tmp_path).train()
    found = {}
    for said in ("generated", "oracle", "none"):
        embedding = EmbeddingConfig(kind, said, out if said == "generated" else "")
        experiment = Experiment(dataclasses.replace(config, embedding=embedding), tmp_path)
        experiment.evaluate(said)
        metrics = json.loads((tmp_path / said / "metrics.json").read_text())
        assert metrics["embedding"] == kind
        found[said] = metrics["captions"]["of_queries"]
    assert found == {
        "generated": f"file {out}",
        "oracle": "annotations: category, scale, occlusion, zoom_in, viewpoint",
        "none": "none",
    }
    said, silent = (
        json.loads((tmp_path / name / "queries.json").read_text()) for name in ("oracle", "none")
    )
    assert said["identity"] == silent["identity"]
    assert said["found"] != silent["found"]
    queries = ~splits["validation"].items.is_shop & (splits["validation"].items["style"] > 0)
    assert len(said["average_precision"]) == queries.sum()


def call(*flags: str, **options) -> subprocess.Popen:
    command = [sys.executable, "tools/collect_captions.py", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_killed_collection_goes_on_and_asks_nothing_twice(
    data,
    answering_dir,
    tmp_path,
    serve,  # noqa: F811
):
    """SIGKILL in the middle of a conversation with a server."""
    answered, done = collections.Counter(), []

    def reply(prompt, number):
        if not done and number > 60:
            return 5.0  # hangs until the kill
        answered[prompt] += 1
        return sensible(prompt, number)

    server, out = serve(reply), tmp_path / "captions.jsonl"
    flags = [
        "--config=configs/demo.py",
        "--config.data.variant=mini",
        f"--config.data.prepared_dir={data.prepared_dir}",
        f"--model={answering_dir}",
        f"--questioner={server.url}",
        "--limit=30",
        "--max_turns=3",
        "--sure=0",
        "--workers=4",
        f"--out={out}",
    ]
    first = call(*flags)
    journal, deadline = out.with_name(out.name + ".journal"), time.monotonic() + 120

    def kept() -> int:
        """Replies on disk."""
        if not journal.exists():
            return 0
        return sum('"usage"' in line for line in journal.read_text().splitlines())

    while kept() < 60 and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert kept() == 60
    done.append(True)
    before = sum(answered.values())
    second = call(*flags, "--prices=1,2")
    stdout, stderr = second.communicate(timeout=120)
    assert second.returncode == 0, stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 30 == len({(line["image_id"], line["item"]) for line in lines})
    # Three questions and a caption each, in both runs together.
    assert before == 60 and sum(answered.values()) == 4 * 30
    took = json.loads(stdout[stdout.index("{") :])
    assert took["already"] + took["items"] == 30
    assert took["price_per_1000_items"] > 0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"questioner": "http://127.0.0.1:9/v1"}, "127.0.0.1:9/v1 cannot be reached"),
        ({"questioner": "phi"}, "--questioner=phi is neither script"),
        ({"method": "ic3"}, "--method=ic3 condenses captions with a language model"),
        ({"method": "telepathy"}, "--method=telepathy is none of"),
        ({"splits": ("test",)}, "--splits has 'test'"),
        ({"limit": -1}, "--limit not negative"),
        ({"part": 2, "parts": 2}, "--part=2/2 is not i/n"),
        ({"method": "captioner", "questioner": "phi"}, "--method=captioner talks to nobody"),
        ({}, "/absent is neither a converted checkpoint"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(settings, message, data, tmp_path):
    with pytest.raises(InputError, match=message):
        collect_captions(data, "/absent", tmp_path / "out.jsonl", CollectConfig(**settings))
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_one_line(tmp_path):
    # Found before the small model is trained that answers where no other is named.
    done = call(f"--out={tmp_path / 'out.jsonl'}", "--questioner=http://127.0.0.1:9/v1")
    _, stderr = done.communicate(timeout=60)
    assert done.returncode == 2
    assert "cannot be reached" in stderr and len(stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config=absent.py"], "--config cannot be loaded"),
        (["--per_second=2"], "--per_second is for a server"),
    ],
)
def test_mistakes_in_flags_are_one_line_each(flags, message, tmp_path):
    done = call(f"--out={tmp_path / 'out.jsonl'}", *flags)
    _, stderr = done.communicate(timeout=60)
    assert done.returncode == 2
    assert message in stderr and len(stderr.strip().splitlines()) == 1


def test_a_model_that_answers_nothing_is_refused(data, tmp_path):
    state = read_state_dict(DATA / "x2vlm_tiny_pretrain.th")
    save_converted(tmp_path / "plain", from_reference(state))
    with pytest.raises(InputError, match="has no answer decoder"):
        collect_captions(data, tmp_path / "plain", tmp_path / "out.jsonl", CollectConfig())
