"""Comparison of configurations, before a run continues or starts from a checkpoint."""

import dataclasses
from collections.abc import Sequence

from capret_jax.config.captions import EARLIER_CLEANING
from capret_jax.config.experiment import ExperimentConfig
from capret_jax.config.model import ModelConfig
from capret_jax.errors import InputError

# Keys that affect neither the trained model nor its metrics, but see `first_difference` for
# loop.evaluate_every.
NON_SEMANTIC_KEYS = (
    "mesh",
    "compute",
    "data.prepared_dir",
    "data.prepare",
    "data.source_dir",
    # Its content is compared instead.
    "data.teacher",
    # All of data.read but resize.
    "data.read.threads",
    "data.read.prefetch",
    "data.read.workers",
    "data.read.cached_images",
    "loop.log_every",
    "loop.checkpoint_every",
    "loop.evaluate_every",
    # The content of these files is compared instead.
    "task.train",
    "task.images",
    "task.refs",
    "task.instances",
)
# Keys that may change between the runs of one workdir, since the trained model stays the same.
_FREE_KEYS = (
    *NON_SEMANTIC_KEYS,
    "mode",
    "evaluation",
    "embedding.captions",
    "embedding.file",
    "task.test",
    "task.allow_missing",
    "task.answers",
    "task.answers_ranked",
    "task.beams",
    "task.min_tokens",
    "task.max_tokens",
    "task.top_k",
)
# Values of keys in runs that were saved before the keys existed, where these are not the defaults.
_FORMER_VALUES = {
    "data.cleaning": EARLIER_CLEANING.kind,
    "data.max_words": EARLIER_CLEANING.max_words,
}
# Fields that may differ between a model and the checkpoint that it starts from.
_RATES = ("drop_path", "dropout", "attention_dropout", "text_drop_path")
_FREE_SIZES = (
    *("image_size", "layer_scale", *_RATES, "embedding", "nlvr"),
    # Tables of the decoder of locations start afresh where these differ.
    *("location_items", "location_classes"),
)
# Parts that a model may leave out, although the checkpoint has them.
_DROPPED_PARTS = ("decoder_layers", "location_layers", "frames")
# Parts that a model may have, although the checkpoint lacks them.
_ADDED_PARTS = ("decoder_layers", "location_layers")


def check_same_training(saved: dict, current: dict, workdir: str) -> None:
    """Checks that a run may continue from a checkpoint: both configs must train the same model.

    Args:
        saved: the config stored with the checkpoint, as nested plain dicts.
        current: the config of this call.
        workdir: folder of the run, for the message.

    Raises:
        InputError: a key that shapes training differs.
    """
    if difference := first_difference(saved, current, _FREE_KEYS):
        raise InputError(
            f"the checkpoint in {workdir} belongs to another config: {difference}; set it back, or "
            "choose another --workdir."
        )


def first_difference(saved: dict, current: dict, free: Sequence[str]) -> str:
    """Describes the first difference between two configs; empty where they are equal.

    Args:
        saved, current: the configs as nested plain dicts.
        free: keys, or groups of keys, that may differ; loop.evaluate_every only without
            loop.keep_best.
    """
    # A key that did not exist when the config was saved had the effect of its default value.
    defaults = _flat(dataclasses.asdict(ExperimentConfig())) | _FORMER_VALUES
    before, now = defaults | _flat(saved), _flat(current)
    if now.get("loop.keep_best"):  # then these evaluations decide which model is used
        free = [key for key in free if key != "loop.evaluate_every"]
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not _is_in(key, free):
            return f"config.{key} was {before.get(key)!r} and is {now.get(key)!r}"
    return ""


def check_same_shapes(wanted: ModelConfig, found: ModelConfig, source: str) -> None:
    """Checks that a model may start from a checkpoint: sizes must agree.

    The image size may differ. The checkpoint's decoders and frame positions may be dropped, and a
    checkpoint without a decoder may get one (of answers: `checkpoints.answer_decoder`).

    Args:
        wanted: model of this run.
        found: model of the checkpoint.
        source: folder of the checkpoint, for the message.

    Raises:
        InputError: a size differs.
    """
    for field in dataclasses.fields(ModelConfig):
        name = field.name
        now, then = getattr(wanted, name), getattr(found, name)
        if name in _FREE_SIZES or (name in _DROPPED_PARTS and now == 0):
            continue
        if name in _ADDED_PARTS and then == 0:
            continue
        if now != then:
            raise InputError(
                f"config.model.{name}={now} does not fit config.init_from={source}, which has "
                f"{then}; set --config.model.{name}={then}."
            )


def _is_in(key: str, groups: Sequence[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _flat(values: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            # A saved config was stored as JSON, which has lists for tuples.
            flat[f"{prefix}{name}"] = _plain(value)
    return flat


def _plain(value):
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
