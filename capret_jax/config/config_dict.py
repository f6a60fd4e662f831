"""Conversion between `ml_collections.ConfigDict`, which supports overrides, and dataclasses.

`configs/*.py` return a `ConfigDict`; below `main` there are only frozen dataclasses, checked once.
"""

import dataclasses
import difflib
import typing

import ml_collections

from capret_jax.buckets.urls import check_no_url
from capret_jax.config.experiment import ExperimentConfig
from capret_jax.errors import InputError

Kind = typing.TypeVar("Kind")
# Keys whose files are read from a bucket, too.
BUCKET_KEYS = frozenset(
    f"config.{name}"
    for name in (
        "init_from",
        "data.prepared_dir",
        "data.captions.file",
        "data.teacher",
        "data.tokenizer",
        "embedding.file",
        "evaluation.detections",
    )
)


def to_config_dict(config: ExperimentConfig) -> ml_collections.ConfigDict:
    """Converts a configuration to a `ConfigDict` with every key."""
    return ml_collections.ConfigDict(dataclasses.asdict(config))


def from_config_dict(values: ml_collections.ConfigDict) -> ExperimentConfig:
    """Converts a `ConfigDict` to a configuration and checks it.

    Raises:
        InputError: an unknown key, a wrong type, or an impossible value; the message names it.
    """
    return build(ExperimentConfig, values.to_dict(), "config")


def build(kind: type[Kind], values: dict, path: str) -> Kind:
    """Builds a dataclass from nested dicts.

    Args:
        kind: the class.
        values: values of its fields; other fields have their defaults.
        path: key of the values, for messages.

    Raises:
        InputError: an unknown key, a wrong type, or an impossible value; the message names it.
    """
    types = typing.get_type_hints(kind)
    for name in values:
        if name not in types:
            near = difflib.get_close_matches(name, types, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(types)}."
            raise InputError(f"{path}.{name} does not exist{hint}")
    checked = {name: _check(types[name], value, f"{path}.{name}") for name, value in values.items()}
    try:
        return kind(**checked)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _check(kind, value, path: str):
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise InputError(f"{path}={value!r} must be a group of settings.")
        return build(kind, value, path)
    wanted = typing.get_origin(kind) or kind
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted is tuple and isinstance(value, list):
        value = tuple(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise InputError(f"{path}={value!r} must be of type {wanted.__name__}.")
    if path not in BUCKET_KEYS:
        check_no_url(path, value)
    return value
