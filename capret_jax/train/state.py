"""What training changes, and how it lies on the mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from capret_jax.config import ModelConfig
from capret_jax.distributed.mesh import param_shardings, place
from capret_jax.models.x2vlm import init_params

_HEAD_STD = 0.02
# The head's rows are a multiple of this, so that they divide over any usual number of devices and
# a state does not depend on it.
_HEAD_ROWS = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes, and that a checkpoint holds.

    Attributes:
        step: () int32, steps done.
        params: {"model": X2-VLM's parameters, "arcface": (R, K, E) class weights, with R - C rows
            of padding behind those of the C classes}.
        opt_state: Optax's.
        average: a moving average of `params["model"]`, None unless `optimizer.ema_decay` asks.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    average: dict | None = None

    @property
    def model(self) -> dict:
        """The model's parameters to evaluate with."""
        return self.params["model"] if self.average is None else self.average

    def with_model(self, params: dict) -> "TrainState":
        """The same state with other parameters of the model; the average starts from them."""
        # A copy, since the training step reuses the memory of each.
        average = None if self.average is None else jax.tree.map(jnp.copy, params)
        return dataclasses.replace(self, params=self.params | {"model": params}, average=average)


def make_params(config: ModelConfig, classes: int, key: jax.Array, subcentres: int = 1) -> dict:
    """Fresh parameters of the model, and of an ArcFace head with `classes` identities.

    Args:
        config: the model.
        classes: C; the head's rows are its next multiple of 256.
        key: a PRNG key.
        subcentres: K, directions per class.
    """
    model_key, head_key = jax.random.split(key)
    head = (classes + -classes % _HEAD_ROWS, subcentres, config.item_width)
    return {
        "model": init_params(config, model_key),
        # Small, so that Adam's first steps can turn the class directions.
        "arcface": _HEAD_STD * jax.random.normal(head_key, head),
    }


def abstract_state(
    config: ModelConfig,
    classes: int,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    subcentres: int = 1,
    averaged: bool = False,
) -> TrainState:
    """Shapes, dtypes and shardings of `init_state`, without allocating anything."""
    create = _creator(config, classes, optimizer, subcentres, averaged)
    shapes = jax.eval_shape(create, jax.random.key(0))
    return place(mesh, shapes)


def init_state(
    config: ModelConfig,
    classes: int,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    subcentres: int = 1,
    averaged: bool = False,
) -> TrainState:
    """A fresh state, born sharded.

    Args:
        config: the model.
        classes: C, training identities.
        optimizer: from `make_optimizer`.
        seed: of the parameters.
        mesh: where it lives.
        subcentres: K, directions per training identity.
        averaged: whether to keep a moving average of the model.
    """
    create = _creator(config, classes, optimizer, subcentres, averaged)
    shardings = param_shardings(mesh, jax.eval_shape(create, jax.random.key(0)))
    return jax.jit(create, out_shardings=shardings)(jax.random.key(seed))


def _creator(config, classes, optimizer, subcentres, averaged):
    def create(key):
        params = make_params(config, classes, key, subcentres)
        average = params["model"] if averaged else None
        return TrainState(jnp.int32(0), params, optimizer.init(params), average)

    return create
