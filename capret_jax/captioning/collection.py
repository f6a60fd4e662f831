"""Collects captions of a dataset's items, by one of several methods."""

import os
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from capret_jax.captioning.batched_model import batch_model
from capret_jax.captioning.calibration import Calibration, calibrate_answers
from capret_jax.captioning.captioner import Captioner
from capret_jax.captioning.captioner_runner import CaptionerRunner
from capret_jax.captioning.config import CollectConfig
from capret_jax.captioning.conversation_runner import ConversationRunner
from capret_jax.captioning.item_crops import ItemCrops
from capret_jax.captioning.oracle_runner import OracleRunner
from capret_jax.captioning.prompted_questioner import PromptedQuestioner
from capret_jax.captioning.questioner import Questioner
from capret_jax.captioning.questioner_factory import open_questioner
from capret_jax.captioning.store import COST_KEYS, CaptionStore, ItemKey
from capret_jax.captioning.vqa_answerer import VqaAnswerer
from capret_jax.checkpoints.converted import ModelCard
from capret_jax.checkpoints.loaded_model import LoadedModel
from capret_jax.checkpoints.loading import ModelFolder, digest
from capret_jax.checkpoints.report import model_parts
from capret_jax.config import ComputeConfig, DataConfig
from capret_jax.config.model import PLAIN
from capret_jax.data.vqa import Question, known_answers, questions_about, vocabulary_of
from capret_jax.datasets import open_dataset
from capret_jax.errors import InputError

# Version of the prompts and rules of captions; increase it when these change.
_VERSION = 3


class CaptionRunner(Protocol):
    """Captions items by one method."""

    def run(self, keys: Sequence[ItemKey], crops: ItemCrops, /) -> int:
        """Captions items; returns the number of items without a caption."""


def collect_captions(
    data: DataConfig,
    model_dir: str | os.PathLike,
    out: str | os.PathLike,
    config: CollectConfig,
    *,
    questioner: Questioner | None = None,
    compute: ComputeConfig = PLAIN,
) -> dict[str, Any]:
    """Writes captions of a dataset's items to `out`; resumes where an earlier call stopped.

    Args:
        data: configuration of the dataset.
        model_dir: folder of the captioning model, as `load_model` takes it.
        out: file of JSON lines for `data.captions.file`, see `captioning.store`.
        config: method and limits of the collection.
        questioner: the questioner from `open_questioner`; None opens it.
        compute: dtype and implementation of the captioning model's computation.

    Returns:
        "items", "already" (done before), "unfinished" and "items_per_second" of this call, with
        "calibration" for conversations; and the items of `summarize`, of everything in `out`.

    Raises:
        InputError: the model lacks what the method needs, the language model cannot be reached or
            stops replying, or `out` belongs to another collection.
    """
    # Checked before any long computation.
    questioner = questioner or open_questioner(config)
    folder: ModelFolder | None = None  # the method "annotations" needs no model
    model: LoadedModel | None = None
    if config.method != "annotations":
        folder = ModelFolder(model_dir)
        require_trained_heads(folder.card, folder.writes_captions, config.method, str(model_dir))
        model = folder.load_model()
    size = model.config.image_size if model else 1
    crops = ItemCrops(open_dataset(data), data.name, size, data.augment.margin)
    keys = crops.keys(config.splits)[: config.limit or None]
    keys = keys[config.part.index :: config.part.count]
    model_digest = digest(jax.device_get(model.params)) if model else ""
    settings = provenance(config, data, model_digest) | {"questioner": questioner.name}
    store = CaptionStore(out, settings)
    pending = [key for key in keys if key not in store.finished]
    calibration: Calibration | None = None
    runner: CaptionRunner = OracleRunner(store)
    try:
        if pending and folder is not None and model is not None:
            device_compute = compute.on(jax.devices()[0].platform)
            batched = batch_model(model, folder.setup(), config.batch_size, device_compute)
            if config.method == "conversation":
                answerer, questions = VqaAnswerer(batched), questions_about(data.name)
                calibration = _calibrate(answerer, questions, crops)
                runner = ConversationRunner(answerer, questioner, questions, store, config)
            else:
                condenser = questioner if isinstance(questioner, PromptedQuestioner) else None
                runner = CaptionerRunner(Captioner(batched), store, condenser, config.in_flight)
        start = time.perf_counter()
        unfinished = runner.run(pending, crops) if pending else 0
        done, seconds = len(pending) - unfinished, time.perf_counter() - start
        return {
            "items": done,
            "already": len(keys) - len(pending),
            "unfinished": unfinished,
            "items_per_second": done / seconds,
            **({"calibration": calibration._asdict()} if calibration else {}),
            **summarize(store, crops),
        }
    finally:
        store.close()


def _calibrate(
    answerer: VqaAnswerer, questions: Sequence[Question], crops: ItemCrops
) -> Calibration:
    """Sets the answerer's temperatures."""
    calibration = calibrate_answers(answerer, questions, crops)
    answerer.temperature = calibration.temperature
    answerer.written_temperature = calibration.written_temperature
    return calibration


def summarize(store: CaptionStore, crops: ItemCrops) -> dict[str, Any]:
    """Summarizes costs and correctness of all captions in a store, over all runs.

    Returns:
        Means per item: "questions", "calls" of the language model, "prompt_tokens",
        "completion_tokens" and "refused" replies; "question_sources" and "caption_sources", the
        shares that the language model wrote and chose, and of the script; and "precision",
        topic -> share of the facts that equal the annotation, for annotated topics.
    """
    correct: dict[str, list[bool]] = {}
    sources: dict[str, Counter[str]] = {"question_sources": Counter(), "caption_sources": Counter()}
    totals, count = dict.fromkeys(("questions", *COST_KEYS), 0), 0
    for key, line in store.lines():
        turns = line.get("turns", [])
        count, totals["questions"] = count + 1, totals["questions"] + len(turns)
        sources["question_sources"].update(turn["source"] for turn in turns)
        if "caption_source" in line:
            sources["caption_sources"][line["caption_source"]] += 1
        for name in COST_KEYS:
            totals[name] += line.get(name, 0)
        known = known_answers(crops.attributes_of(key)) if key in crops else {}
        for turn in turns:
            if turn["sure"] and turn["topic"] in known:
                correct.setdefault(turn["topic"], []).append(turn["answer"] == known[turn["topic"]])
    means = {name: total / max(count, 1) for name, total in totals.items()}
    precision = {topic: float(np.mean(values)) for topic, values in correct.items()}
    shares = {
        name: {source: number / counts.total() for source, number in counts.items()}
        for name, counts in sources.items()
        if counts
    }
    return {**means, **shares, "precision": precision}


def require_capability(folder: str | os.PathLike, method: str) -> None:
    """Checks that the model in a folder has what a method needs.

    Raises:
        InputError: the folder holds no model, or the model lacks what the method needs.
    """
    if method != "annotations":
        opened = ModelFolder(folder)
        require_trained_heads(opened.card, opened.writes_captions, method, str(folder))


def require_trained_heads(card: ModelCard, writes: bool, method: str, name: str) -> None:
    """Checks that a captioning model has what a method needs.

    Args:
        card: shapes and kind of the model.
        writes: True if its masked language model was trained to generate text left to right.
        method: one of `METHODS`.
        name: name of the model, for the message.

    Raises:
        InputError: the model lacks what the method needs.
    """
    if method == "conversation" and not card.config.decoder_layers:
        raise InputError(
            f"{name} has no answer decoder, so it answers no questions: convert a vqa checkpoint."
        )
    needed = "decoder" if method == "conversation" else "mlm_head"
    if needed in model_parts(card.fresh):
        raise InputError(
            f"--method={method} needs the {needed}, of which {name} (a {card.kind} checkpoint) has "
            "no trained values: convert another kind, or train this one first."
        )
    if method != "conversation" and not writes:
        raise InputError(
            f"--method={method} writes from left to right, and {name} (a {card.kind} checkpoint) "
            "has learnt to fill gaps: convert a caption_mlm checkpoint, or train one with "
            "loss.mlm_causal."
        )


def provenance(config: CollectConfig, data: DataConfig, model_digest: str) -> dict[str, Any]:
    """Returns the settings that determine a collection's captions, without its questioner.

    Args:
        config: method and limits of the collection.
        data: configuration of the dataset.
        model_digest: `digest` of the captioning model; empty for annotations.
    """
    settings: dict[str, Any] = {
        "version": _VERSION,
        "method": config.method,
        "dataset": f"{data.name}/{data.variant}" if data.name == "synthetic" else data.name,
    }
    if config.part.count > 1:
        settings["part"] = f"{config.part.index}/{config.part.count}"
    if config.method != "annotations":
        settings |= {"model": model_digest, "margin": data.augment.margin}
        if data.read.resize != "fast":
            settings["resize"] = data.read.resize
    if config.method == "conversation":
        vocabulary = "\n".join(vocabulary_of(questions_about(data.name)))
        settings["questions"] = zlib.crc32(vocabulary.encode())
        settings |= vars(config.dialogue)
    return settings
