"""Captions for the items of a dataset, collected by a model that looks at them."""

import dataclasses
import functools
import os
import time
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from capret_jax.captioning.calibration import calibrate_answers
from capret_jax.captioning.captioner import Captioner, describe
from capret_jax.captioning.conversation import DialogueConfig, Turn, plain_caption
from capret_jax.captioning.conversation_runner import Collector
from capret_jax.captioning.item_crops import ItemCrops
from capret_jax.captioning.language_models import ServerConfig, open_language_model
from capret_jax.captioning.questioner import Prompted, Questioner, Script
from capret_jax.captioning.store import COUNTED, Key, Store
from capret_jax.captioning.vqa_answerer import VqaAnswerer
from capret_jax.checkpoints.conversion import parts
from capret_jax.checkpoints.converted import ModelCard
from capret_jax.checkpoints.loading import (
    LoadedModel,
    digest,
    load_card,
    load_model,
    load_setup,
    writes_captions,
)
from capret_jax.config import ComputeConfig, DataConfig
from capret_jax.config.model import PLAIN
from capret_jax.data.tokenizer import CaptionEncoder, load_tokenizer
from capret_jax.data.vqa import (
    known_answers,
    known_topics,
    questions_about,
    vocabulary_of,
)
from capret_jax.datasets import open_dataset
from capret_jax.errors import InputError

METHODS = ("conversation", "captioner", "ic3", "annotations")
SPLITS = ("train", "validation")
# Of the prompts and rules that captions follow: to be raised when these change.
_VERSION = 2


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """How captions come about.

    Attributes:
        method: "conversation"; "captioner", X2-VLM's own; or "ic3", several of those condensed by a
            language model; or "annotations", what a conversation would say if all answers were
            true: an upper bound, not for shoppers' photos.
        questioner: "script", an OpenAI-compatible server's address, or "transformers:PATH".
        language_model: of the server's; empty for its first.
        splits: whose items.
        limit: of items, over all splits; 0 for all.
        part, parts: every so many-th of these items, from which one on; the files of all parts
            together are those of one.
        in_flight: items at once.
        batch_size: pictures and questions of one call of the model.
        dialogue: when a conversation ends, and what counts as a fact.
        server: how to treat it.
    """

    method: str = "conversation"
    questioner: str = "script"
    language_model: str = ""
    splits: tuple[str, ...] = SPLITS
    limit: int = 0
    part: int = 0
    parts: int = 1
    in_flight: int = 512
    batch_size: int = 64
    dialogue: DialogueConfig = DialogueConfig()
    server: ServerConfig = ServerConfig()

    def __post_init__(self):
        if self.method not in METHODS:
            raise InputError(f"--method={self.method} is none of {', '.join(METHODS)}.")
        for split in self.splits:
            if split not in SPLITS:
                raise InputError(f"--splits has {split!r}, which is none of {', '.join(SPLITS)}.")
        if self.method == "ic3" and self.questioner == "script":
            raise InputError(
                "--method=ic3 condenses captions with a language model: set --questioner."
            )
        if min(self.in_flight, self.batch_size) < 1 or self.limit < 0:
            raise InputError("--in_flight and --batch_size must be positive, --limit not negative.")
        if not 0 <= self.part < self.parts:
            raise InputError(f"--part={self.part}/{self.parts} is not i/n with i from 0 to n - 1.")
        if self.method in ("captioner", "annotations") and self.questioner != "script":
            raise InputError(
                f"--method={self.method} talks to nobody: leave --questioner={self.questioner} out."
            )

    def describe(self, dataset: str) -> str:
        """For the record: what can reach a caption.

        Args:
            dataset: `DataConfig.name`.
        """
        seen = "what it sees in the picture, and no annotation"
        if self.method == "annotations":
            return f"the annotations: {', '.join(known_topics(dataset))}"
        if self.method == "captioner":
            return f"X2-VLM's captioner: {seen}"
        if self.method == "ic3":
            return f"X2-VLM's captions condensed by {self.questioner}: {seen}"
        return (
            f"answers of X2-VLM to {self.questioner}: what it sees in the picture; annotations, of "
            "training items, say how far its probabilities are trusted, and no more"
        )


def collect_captions(
    data: DataConfig,
    model_dir: str | os.PathLike,
    out: str | os.PathLike,
    config: CollectConfig,
    questioner: Questioner | None = None,
    compute: ComputeConfig = PLAIN,
) -> dict[str, Any]:
    """Writes captions of a dataset's items to `out`; goes on where an earlier call stopped.

    Args:
        data: the dataset.
        model_dir: of the model that looks, as `load_model` takes it.
        out: JSON lines for `data.captions.file`, see `captioning.store`.
        config: how.
        questioner: from `open_questioner`; opened here when None.
        compute: how the model that looks is computed.

    Returns:
        Of this call "items", "already" done before, "unfinished", "items_per_second", and of
        conversations "calibration"; of everything in `out`, see `costs`.

    Raises:
        InputError: the model cannot do it, the language model cannot be reached or falls silent,
            or `out` belongs to another collection.
    """
    # Before anything takes long.
    questioner = questioner or open_questioner(config)
    looker: LoadedModel | None = None  # annotations need nobody
    if config.method != "annotations":
        check_looker(model_dir, config.method)
        looker = load_model(model_dir)
    size = looker.config.image_size if looker else 1
    views = ItemCrops(open_dataset(data), data.name, size, data.augment.margin)
    keys = views.keys(config.splits)[: config.limit or None][config.part :: config.parts]
    model = digest(jax.device_get(looker.params)) if looker else ""
    store = Store(out, provenance(config, data, model) | {"questioner": questioner.name})
    left = [key for key in keys if key not in store.finished]
    try:
        work, more = (lambda: 0), {}
        if looker is None:
            work = functools.partial(_tell_truth, views, left, store)
        elif left:
            setup, on = load_setup(model_dir), compute.on(jax.devices()[0].platform)
            encode = CaptionEncoder(load_tokenizer(setup.tokenizer), setup.max_tokens)
            machine = looker.config, looker.params, encode, config.batch_size, on
            prepare = _conversation if config.method == "conversation" else _description
            work, more = prepare(machine, questioner, views, left, store, config)
        start = time.perf_counter()
        unfinished = work()
        done, seconds = len(left) - unfinished, time.perf_counter() - start
        return {
            "items": done,
            "already": len(keys) - len(left),
            "unfinished": unfinished,
            "items_per_second": done / seconds,
            **more,
            **costs(store, views),
        }
    finally:
        store.close()


def _conversation(machine, questioner, views, left, store, config):
    """What holds all conversations and returns how many are unfinished; and the calibration."""
    answerer, questions = VqaAnswerer(*machine), questions_about(views.dataset)
    calibration = calibrate_answers(answerer, questions, views)
    answerer.temperature = calibration.temperature
    answerer.written_temperature = calibration.written_temperature
    collector = Collector(answerer, questioner, questions, config.dialogue, store, config.in_flight)
    work = functools.partial(collector.collect, left, views)
    return work, {"calibration": calibration._asdict()}


def _description(machine, questioner, views, left, store, config):
    """What writes all captions and returns how many are unfinished; and nothing else."""
    condenser = questioner if isinstance(questioner, Prompted) else None
    describer, in_flight = Captioner(*machine), config.in_flight
    return functools.partial(describe, left, views, describer, store, condenser, in_flight), {}


def costs(store: Store, views: ItemCrops) -> dict[str, Any]:
    """What the captions of a collection took, in all of its runs.

    Returns:
        Per item "questions", "calls" of the language model, "prompt_tokens", "completion_tokens"
        and "refused" replies; and "precision", topic -> share of the facts that are true, where the
        dataset knows that.
    """
    judged: dict[str, list[bool]] = {}
    total, count = dict.fromkeys(("questions", *COUNTED), 0), 0
    for key, line in store.lines():
        turns = line.get("turns", [])
        count, total["questions"] = count + 1, total["questions"] + len(turns)
        for name in COUNTED:
            total[name] += line.get(name, 0)
        known = known_answers(views.attributes_of(key)) if key in views else {}
        for turn in turns:
            if turn["sure"] and turn["topic"] in known:
                judged.setdefault(turn["topic"], []).append(turn["answer"] == known[turn["topic"]])
    each = {name: value / max(count, 1) for name, value in total.items()}
    return {**each, "precision": {topic: float(np.mean(right)) for topic, right in judged.items()}}


def _tell_truth(views: ItemCrops, keys: Sequence[Key], store: Store) -> int:
    for key in keys:
        known = known_answers(views.attributes_of(key))
        turns = [Turn("", topic, answer, 1.0, True, True) for topic, answer in known.items()]
        store.finish(key, plain_caption(turns))
    return 0


def open_questioner(config: CollectConfig) -> Questioner:
    """Who asks, or sums up.

    Raises:
        InputError: it cannot be reached.
    """
    if config.questioner == "script" or config.method in ("captioner", "annotations"):
        return Script()
    model = open_language_model(config.questioner, config.language_model, config.server)
    return Prompted(model, model.name, model.close)


def check_looker(folder: str | os.PathLike, method: str) -> None:
    """
    Raises:
        InputError: the folder holds no model, or one that cannot do it.
    """
    if method != "annotations":
        check_able(load_card(folder), writes_captions(folder), method, str(folder))


def check_able(card: ModelCard, writes: bool, method: str, name: str) -> None:
    """
    Args:
        card: of the model that looks.
        writes: whether its language model has learnt to write, left to right.
        method: one of `METHODS`.
        name: of the model, for the message.

    Raises:
        InputError: it lacks what the method needs.
    """
    if method == "conversation" and not card.config.decoder_layers:
        raise InputError(
            f"{name} has no answer decoder, so it answers no questions: convert a vqa checkpoint."
        )
    needed = "decoder" if method == "conversation" else "mlm_head"
    if needed in parts(card.fresh):
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


def provenance(config: CollectConfig, data: DataConfig, looker: str) -> dict[str, Any]:
    """What makes captions what they are, but for who asks.

    Args:
        config: how they come about.
        data: the dataset.
        looker: `digest` of the model that looks; empty for annotations.
    """
    settings: dict[str, Any] = {
        "version": _VERSION,
        "method": config.method,
        "dataset": f"{data.name}/{data.variant}" if data.name == "synthetic" else data.name,
    }
    if config.parts > 1:
        settings["part"] = f"{config.part}/{config.parts}"
    if config.method != "annotations":
        settings |= {"model": looker, "margin": data.augment.margin}
    if config.method == "conversation":
        asked = "\n".join(vocabulary_of(questions_about(data.name)))
        settings["questions"] = zlib.crc32(asked.encode())
        settings |= vars(config.dialogue)
    return settings
