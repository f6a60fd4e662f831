"""Comparisons of two configurations: may a run go on, or start, from a checkpoint of another?"""

import dataclasses
from collections.abc import Sequence

from capret_jax.config.experiment import ExperimentConfig
from capret_jax.config.model import ModelConfig
from capret_jax.errors import InputError

# Keys that change neither what is trained nor how it is measured.
NON_SEMANTIC_KEYS = (
    "mesh",
    "compute",
    "data.prepared_dir",
    "data.prepare",
    "data.source_dir",
    "data.read",
    "loop.log_every",
    "loop.checkpoint_every",
    "loop.evaluate_every",
)
# Keys that may change between the runs of one workdir without changing what is trained.
_FREE_KEYS = (*NON_SEMANTIC_KEYS, "mode", "evaluation", "embedding.captions", "embedding.file")
# Fields that may differ between a model and the checkpoint that it starts from.
_FREE_SIZES = ("image_size", "layer_scale", "drop_path", "dropout", "embedding")


def check_same_training(saved: dict, current: dict, workdir: str) -> None:
    """Refuses to continue a run under a config that would have trained something else.

    Args:
        saved: the config stored with the checkpoint, as nested plain dicts.
        current: the config of this call.
        workdir: for the message.

    Raises:
        InputError: a key that shapes training differs.
    """
    if difference := first_difference(saved, current, _FREE_KEYS):
        raise InputError(
            f"the checkpoint in {workdir} belongs to another config: {difference}; set it back, or "
            "choose another --workdir."
        )


def first_difference(saved: dict, current: dict, free: Sequence[str]) -> str:
    """What differs between two configs, in words; empty when nothing does.

    Args:
        saved, current: as nested plain dicts.
        free: keys, or groups of them, that may differ.
    """
    # A key that is younger than the saved config had its default value then.
    defaults = _flat(dataclasses.asdict(ExperimentConfig()))
    before, now = defaults | _flat(saved), _flat(current)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not _is_in(key, free):
            return f"config.{key} was {before.get(key)!r} and is {now.get(key)!r}"
    return ""


def check_same_shapes(wanted: ModelConfig, found: ModelConfig, source: str) -> None:
    """Refuses to start a model from one of another size; another image size is fine.

    A VQA decoder may also be left behind.

    Args:
        wanted: of this run.
        found: of the checkpoint.
        source: for the message.

    Raises:
        InputError: a size differs.
    """
    for field in dataclasses.fields(ModelConfig):
        name = field.name
        now, then = getattr(wanted, name), getattr(found, name)
        if name in _FREE_SIZES or (name == "decoder_layers" and now == 0):
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
            # JSON, through which a saved config went, has lists for tuples.
            flat[f"{prefix}{name}"] = _plain(value)
    return flat


def _plain(value):
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
