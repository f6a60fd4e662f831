"""Captions for the items of a dataset, collected by a model that looks at them."""

import dataclasses
import os
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from capret_jax.captioning.answerer import (
    Answerer,
    calibration_error,
    fit_temperature,
    fit_written_temperature,
    sharpen,
)
from capret_jax.captioning.collection import Collector
from capret_jax.captioning.describing import Describer, describe
from capret_jax.captioning.dialogue import DialogueConfig, Turn, plain_caption
from capret_jax.captioning.language_models import ServerConfig, open_language_model
from capret_jax.captioning.questioner import Prompted, Questioner, Script
from capret_jax.captioning.store import COUNTED, Key, Store
from capret_jax.convert.checkpoint import ModelCard
from capret_jax.convert.reference import parts
from capret_jax.data.dataset import DataConfig, Dataset, open_dataset
from capret_jax.data.items import ItemTable
from capret_jax.data.pipeline import Split
from capret_jax.data.questions import (
    Question,
    known_answers,
    known_topics,
    questions_about,
    vocabulary_of,
)
from capret_jax.data.tokenizer import CaptionEncoder, load_tokenizer
from capret_jax.errors import InputError
from capret_jax.loading import (
    LoadedModel,
    digest,
    load_card,
    load_model,
    load_setup,
    writes_captions,
)
from capret_jax.models.config import PLAIN, ComputeConfig

METHODS = ("conversation", "captioner", "ic3", "annotations")
SPLITS = ("train", "validation")
# Of the prompts and rules that captions follow: to be raised when these change.
_VERSION = 2
# Training items whose known answers say how far the model's probabilities can be trusted.
_CALIBRATED_ON = 512


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


class Calibration(NamedTuple):
    """How far the answers can be trusted, on items whose true answers are known.

    Attributes:
        temperature: that makes probabilities mean what they say.
        written_temperature: the same of written answers.
        error_before, error: expected calibration error without it and with it.
        accuracy: topic -> share of right answers.
    """

    temperature: float
    written_temperature: float
    error_before: float
    error: float
    accuracy: dict[str, float]


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
    if config.method == "annotations":
        looker, size = None, 1  # nobody looks
    else:
        check_looker(model_dir, config.method)
        looker = load_model(model_dir)
        size = looker.config.image_size
    dataset = open_dataset(data)
    views = Views(dataset, size, data.augment.margin)
    keys = views.keys(config.splits)[: config.limit or None][config.part :: config.parts]
    store = Store(out, _settings(config, questioner, data, looker))
    left, more, unfinished = [key for key in keys if key not in store.finished], {}, 0
    start = time.perf_counter()
    try:
        if not left:
            pass  # what is there is described below
        elif looker is None:
            _tell_truth(views, left, store)
        else:
            setup, on = load_setup(model_dir), compute.on(jax.devices()[0].platform)
            encode = CaptionEncoder(load_tokenizer(setup.tokenizer), setup.max_tokens)
            machine = looker.config, looker.params, encode, config.batch_size, on
            if config.method == "conversation":
                answerer, questions = Answerer(*machine), questions_about(data.name)
                calibration = calibrate(answerer, questions, dataset.train, views)
                more["calibration"] = calibration._asdict()
                answerer.temperature = calibration.temperature
                answerer.written_temperature = calibration.written_temperature
                start = time.perf_counter()
                collector = Collector(
                    answerer, questioner, questions, config.dialogue, store, config.in_flight
                )
                unfinished = collector.collect(left, views)
            else:
                condenser = questioner if isinstance(questioner, Prompted) else None
                unfinished = describe(
                    left, views, Describer(*machine), store, condenser, config.in_flight
                )
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


def costs(store: Store, views: "Views") -> dict[str, Any]:
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


def _tell_truth(views: "Views", keys: Sequence[Key], store: Store) -> None:
    for key in keys:
        known = known_answers(views.attributes_of(key))
        turns = [Turn("", topic, answer, 1.0, True, True) for topic, answer in known.items()]
        store.finish(key, plain_caption(turns))


def calibrate(
    answerer: Answerer,
    questions: Sequence[Question],
    split: Split,
    look: Callable[[Key], np.ndarray],
) -> Calibration:
    """Compares answers with what is known of some training items.

    Args:
        answerer: at its temperatures of 1.
        questions: of which those are asked whose answers the dataset knows.
        split: the training split.
        look: the picture of an item.
    """
    items = split.items
    rows = np.unique(np.linspace(0, len(items) - 1, _CALIBRATED_ON).astype(int))
    states = answerer.look(np.stack([look(_key_of("train", items, row)) for row in rows]))
    known = [known_answers(items.attributes_of(int(row))) for row in rows]
    tables, truths, accuracy = [], [], {}
    written: list[tuple[float, bool]] = []
    for question in questions:
        places = [i for i, k in enumerate(known) if k.get(question.topic) in question.answers]
        if not places:
            continue
        table = answerer.probabilities(states[places], question.text, question.answers)
        truth = np.array([question.answers.index(known[i][question.topic]) for i in places])
        tables.append(table)
        truths.append(truth)
        accuracy[question.topic] = float((table.argmax(axis=1) == truth).mean())
        own = answerer.written(states[places], [question.text] * len(places))
        written += [
            (answer.probability, _agree(answer.text, known[i][question.topic]))
            for i, answer in zip(places, own, strict=True)
        ]
    temperature = fit_temperature(tables, truths)
    before, after = (_error(tables, truths, each) for each in (1.0, temperature))
    written_temperature = fit_written_temperature(*map(np.array, zip(*written, strict=True)))
    return Calibration(temperature, written_temperature, before, after, accuracy)


def _agree(written: str, known: str) -> bool:
    """Whether one says nothing but what the other does: "top" of a short sleeve top."""
    words, others = set(written.split()), set(known.split())
    return bool(words) and (words <= others or others <= words)


def _error(tables, truths, temperature: float) -> float:
    sharpened = [sharpen(table, temperature) for table in tables]
    confidence = np.concatenate([table.max(axis=1) for table in sharpened])
    right = [table.argmax(axis=1) == truth for table, truth in zip(tables, truths, strict=True)]
    return calibration_error(confidence, np.concatenate(right))


class Views:
    """The crop of an item, by its key."""

    def __init__(self, dataset: Dataset, size: int, margin: float):
        self._splits = {"train": dataset.train, "validation": dataset.validation}
        self._size, self._margin = size, margin
        self._rows = {
            _key_of(name, split.items, row): row
            for name, split in self._splits.items()
            for row in range(len(split.items))
        }

    def keys(self, splits: Sequence[str]) -> list[Key]:
        """Of all items of some splits."""
        return [key for split in splits for key in self._rows if key.split == split]

    def __contains__(self, key: Key) -> bool:
        return key in self._rows

    def attributes_of(self, key: Key) -> dict[str, int]:
        """What is known of an item."""
        return self._splits[key.split].items.attributes_of(self._rows[key])

    def __call__(self, key: Key) -> np.ndarray:
        split = self._splits[key.split]
        return split.crop_view(self._rows[key], self._size, self._margin).image


def _key_of(split: str, items: ItemTable, row: int) -> Key:
    return Key(split, int(items["image_id"][row]), int(items["number"][row]))


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


def _settings(
    config: CollectConfig, questioner: Questioner, data: DataConfig, looker: LoadedModel | None
) -> dict[str, Any]:
    """What makes captions of one file alike."""
    settings: dict[str, Any] = {
        "version": _VERSION,
        "method": config.method,
        "dataset": f"{data.name}/{data.variant}" if data.name == "synthetic" else data.name,
    }
    if config.parts > 1:
        settings["part"] = f"{config.part}/{config.parts}"
    if looker is not None:
        settings["questioner"] = questioner.name
        settings["model"] = digest(jax.device_get(looker.params))
        settings["margin"] = data.augment.margin
    if config.method == "conversation":
        asked = "\n".join(vocabulary_of(questions_about(data.name)))
        settings["questions"] = zlib.crc32(asked.encode())
        settings |= vars(config.dialogue)
    return settings
