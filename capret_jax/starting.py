"""What a run starts from when it has no checkpoint of its own: another model's parameters."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from capret_jax.convert.checkpoint import ModelCard
from capret_jax.convert.reference import parts
from capret_jax.convert.relative_position import with_image_size
from capret_jax.errors import InputError
from capret_jax.loading import load_card, load_weights
from capret_jax.mesh import place
from capret_jax.models.config import ModelConfig
from capret_jax.models.x2vlm import abstract_model
from capret_jax.train.state import TrainState

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


def start_from(
    source: str | os.PathLike, state: TrainState, image_size: int, mesh: Mesh
) -> tuple[TrainState, str, list[str]]:
    """A fresh state with a checkpoint's values, where it holds some.

    Args:
        source: folder of the checkpoint.
        state: fresh, on the mesh.
        image_size: of the model; the checkpoint's may be another.
        mesh: of the state.

    Returns:
        The state, the kind of checkpoint, and the parts of the model that stay fresh.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    loaded, card = load_weights(source, functools.partial(place, mesh))
    loaded, _ = with_image_size(loaded, card.config, image_size)
    given, wanted = (flatten_dict(tree, sep="/") for tree in (loaded, state.params["model"]))
    fresh = set(_fresh(card, list(wanted)))
    model = {
        path: leaf if path in fresh else jax.device_put(given[path], leaf.sharding)
        for path, leaf in wanted.items()
    }
    params = unflatten_dict(model, sep="/")
    # A copy, since the training step reuses the memory of each.
    average = None if state.average is None else jax.tree.map(jnp.copy, params)
    state = dataclasses.replace(state, params=state.params | {"model": params}, average=average)
    return state, card.kind, parts(fresh)


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
