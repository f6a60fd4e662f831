"""Initialises a model from another checkpoint."""

import functools
import os
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from capret_jax.checkpoints.answer_decoder import (
    decoder_sources,
    describe_copies,
    describe_fresh,
)
from capret_jax.checkpoints.converted import ModelCard
from capret_jax.checkpoints.loading import ModelFolder
from capret_jax.checkpoints.relative_position import with_image_size
from capret_jax.checkpoints.report import model_parts
from capret_jax.config import ModelConfig
from capret_jax.distributed.mesh import with_shardings
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import abstract_model

# Projections that each kind of embedding needs.
_PROJECTIONS = {
    "image": ("vision_proj",),
    "text": ("text_proj",),
    "joined": ("vision_proj", "text_proj"),
    "fusion": ("fusion_proj",),
}


def fresh_parameters(source: str | os.PathLike, model: ModelConfig) -> list[str]:
    """Returns the paths of a model's parameters without trained values in a checkpoint.

    An answer decoder that starts from the encoders of the checkpoint is among them: it has not
    learnt to answer.

    Args:
        source: folder of the checkpoint; empty for no checkpoint.
        model: shapes of the model to initialise.

    Raises:
        InputError: the folder holds no model.
    """
    return _fresh(ModelFolder(source).card, model) if source else parameter_paths(model)


def initialised_parameters(source: str | os.PathLike, model: ModelConfig) -> tuple[str, ...]:
    """Returns the paths of a model's parameters that start from a checkpoint's trained values.

    Args:
        source: folder of the checkpoint.
        model: shapes of the model to initialise.

    Raises:
        InputError: the folder holds no model.
    """
    fresh = set(fresh_parameters(source, model))
    return tuple(path for path in parameter_paths(model) if path not in fresh)


def _fresh(card: ModelCard, model: ModelConfig) -> list[str]:
    trained = set(parameter_paths(card.config)) - set(card.fresh)
    trained -= _other_locations(card.config, model)
    return [path for path in parameter_paths(model) if path not in trained]


def _other_locations(found: ModelConfig, wanted: ModelConfig) -> set[str]:
    """Returns the paths of the decoder of locations whose shapes depend on items or classes.

    Those of other classes, such as COCO's, start afresh, and the rest of the decoder does not.
    """
    before, now = (
        flatten_dict(abstract_model(model)[1].get("locations", {}), sep="/")
        for model in (found, wanted)
    )
    return {
        f"locations/{path}"
        for path, leaf in now.items()
        if path in before and before[path].shape != leaf.shape
    }


def parameter_paths(model: ModelConfig) -> list[str]:
    """Returns the paths of a model's parameters, such as "vision_proj/kernel"."""
    return list(flatten_dict(abstract_model(model)[1], sep="/"))


_copy = jax.jit(jnp.copy)


class InitialParams(NamedTuple):
    """Parameters before the first step of a training.

    Attributes:
        params: parameters of the model, a nested dict on the mesh.
        kind: kind of the checkpoint that they are from.
        fresh: parts of the model that stay fresh.
        copies: description of parts that start from others; empty if there are none.
    """

    params: dict
    kind: str
    fresh: list[str]
    copies: str


def initial_params(
    source: str | os.PathLike, fresh: dict, model: ModelConfig, mesh: Mesh
) -> InitialParams:
    """Replaces fresh parameters by trained ones of a checkpoint, where it has them.

    An answer decoder that the checkpoint does not have starts from its encoders, see
    `answer_decoder.decoder_sources`.

    Args:
        source: folder of the checkpoint.
        fresh: parameters of the model, a nested dict on the mesh.
        model: shapes of the model; the image size of the checkpoint may differ.
        mesh: mesh of the parameters.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    folder = ModelFolder(source)
    card, loaded = folder.card, folder.load_params(functools.partial(with_shardings, mesh))
    loaded, _ = with_image_size(loaded, card.config, model.image_size)
    loaded, initial = (flatten_dict(tree, sep="/") for tree in (loaded, fresh))
    trained = loaded.keys() - set(card.fresh) - _other_locations(card.config, model)
    copied = {
        path: origin
        for path, origin in decoder_sources(model, initial.keys()).items()
        if path not in trained and origin in trained
    }
    params = {}
    for path, leaf in initial.items():
        if path in trained:
            params[path] = jax.device_put(loaded[path], leaf.sharding)
        elif path in copied:
            # A copy, since a training step reuses the memory of each parameter.
            params[path] = jax.device_put(_copy(loaded[copied[path]]), leaf.sharding)
        else:
            params[path] = leaf
    untrained = initial.keys() - trained - copied.keys()
    parts = model_parts(path for path in untrained if not path.startswith("decoder/"))
    parts += describe_fresh(untrained, initial.keys())
    copies = describe_copies(model, copied)
    return InitialParams(unflatten_dict(params, sep="/"), card.kind, sorted(parts), copies)


def check_projection(source: str | os.PathLike, model: ModelConfig) -> None:
    """Checks that a checkpoint has the projections of the model's embedding.

    Raises:
        InputError: it lacks a projection, so that the embedding would be random.
    """
    remedy = "start from a pretrain or retrieval checkpoint"
    check_parts(source, model, _PROJECTIONS[model.embedding], remedy)


def check_parts(
    source: str | os.PathLike,
    model: ModelConfig,
    parts: Iterable[str],
    remedy: str = "start from a checkpoint of this task",
) -> None:
    """Checks that a checkpoint has parts of the model that are evaluated.

    Args:
        source: folder of the checkpoint.
        model: shapes of the model.
        parts: names of the parts.
        remedy: what to do besides training, for the message.

    Raises:
        InputError: it lacks a part, whose output would be random.
    """
    card = ModelFolder(source).card
    fresh = model_parts(_fresh(card, model))
    for part in parts:
        if part in fresh:
            raise InputError(
                f"config.init_from={source} (a {card.kind} checkpoint) holds no {part}, so its "
                f"results would be random: train first, or {remedy}."
            )
