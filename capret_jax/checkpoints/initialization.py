"""Initialising a model from another checkpoint."""

import functools
import os

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from capret_jax.checkpoints.conversion import parts
from capret_jax.checkpoints.converted import ModelCard
from capret_jax.checkpoints.loading import load_card, load_weights
from capret_jax.checkpoints.relative_position import with_image_size
from capret_jax.config import ModelConfig
from capret_jax.distributed.mesh import place
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import abstract_model

# What each kind of embedding is read off with.
_PROJECTIONS = {
    "image": ("vision_proj",),
    "text": ("text_proj",),
    "joined": ("vision_proj", "text_proj"),
    "fusion": ("fusion_proj",),
}


def fresh_parameters(source: str | os.PathLike, model: ModelConfig) -> list[str]:
    """Paths of a model's parameters that a checkpoint holds no trained values of.

    Args:
        source: folder of the checkpoint; empty for none at all.
        model: that is to be started.

    Raises:
        InputError: the folder holds no model.
    """
    wanted = list(flatten_dict(abstract_model(model)[1], sep="/"))
    return _fresh(load_card(source), wanted) if source else wanted


def _fresh(card: ModelCard, wanted: list[str]) -> list[str]:
    held = set(flatten_dict(abstract_model(card.config)[1], sep="/")) - set(card.fresh)
    return [path for path in wanted if path not in held]


def initial_params(
    source: str | os.PathLike, fresh: dict, image_size: int, mesh: Mesh
) -> tuple[dict, str, list[str]]:
    """Replaces fresh parameters by a checkpoint's, where it holds trained ones.

    Args:
        source: folder of the checkpoint.
        fresh: the model's parameters, a nested dict on the mesh.
        image_size: of the model in pixels; the checkpoint's may be another.
        mesh: of the parameters.

    Returns:
        The parameters, the kind of checkpoint, and the parts of the model that stay fresh.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    loaded, card = load_weights(source, functools.partial(place, mesh))
    loaded, _ = with_image_size(loaded, card.config, image_size)
    given, wanted = (flatten_dict(tree, sep="/") for tree in (loaded, fresh))
    untrained = set(_fresh(card, list(wanted)))
    params = {
        path: leaf if path in untrained else jax.device_put(given[path], leaf.sharding)
        for path, leaf in wanted.items()
    }
    return unflatten_dict(params, sep="/"), card.kind, parts(untrained)


def check_projection(source: str | os.PathLike, model: ModelConfig) -> None:
    """Refuses to evaluate an embedding that is random.

    Raises:
        InputError: the checkpoint lacks what the embedding is read off with.
    """
    fresh = parts(fresh_parameters(source, model))
    for part in _PROJECTIONS[model.embedding]:
        if part in fresh:
            raise InputError(
                f"config.init_from={source} (a {load_card(source).kind} checkpoint) holds no "
                f"{part}, so its embedding would be random: train first, or start from a pretrain "
                "or retrieval checkpoint."
            )
