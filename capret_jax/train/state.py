"""The training state and its sharding."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict

from capret_jax.config import ModelConfig
from capret_jax.distributed.mesh import param_shardings, with_shardings
from capret_jax.losses.memory import Memory
from capret_jax.models.x2vlm import init_params
from capret_jax.train.setup import StepSetup

_HEAD_STD = 0.02
# The number of rows of the ArcFace head is a multiple of this, so that it divides over any usual
# number of devices and the state's shapes do not depend on that number.
_HEAD_ROWS = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes, and that a checkpoint holds.

    Attributes:
        step: () int32, number of steps done.
        params: {"model": parameters of X2-VLM, "arcface": (R, K, E) float32 class weights, the last
            R - C rows of which are padding}.
        opt_state: state of the optimizer.
        average: moving average of `params["model"]`, None unless `optimizer.ema_decay` is set.
        start: path in the model -> its value before the first step, for the parameters that
            `optimizer.drift_penalty` keeps near it; None without one.
        memory: embeddings of earlier batches, None unless `loss.supcon_memory` is set.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    average: dict | None = None
    start: dict[str, jax.Array] | None = None
    memory: Memory | None = None

    @property
    def model(self) -> dict:
        """Parameters of the model for evaluation: the moving average, if there is one."""
        return self.params["model"] if self.average is None else self.average

    def with_model(self, params: dict) -> "TrainState":
        """Returns the state with other parameters of the model, as `average` and `start`, too."""
        # Copies, since the training step donates all, and a buffer can be donated only once.
        average = None if self.average is None else jax.tree.map(jnp.copy, params)
        start = None if self.start is None else _copies(params, self.start)
        params = self.params | {"model": params}
        return dataclasses.replace(self, params=params, average=average, start=start)


def make_params(config: ModelConfig, classes: int, key: jax.Array, subcentres: int = 1) -> dict:
    """Draws the parameters of the model and of its ArcFace head.

    Args:
        config: sizes of the model.
        classes: C, number of classes; the head has R rows, the next multiple of 256.
        key: a PRNG key.
        subcentres: K, sub-centres per class.
    """
    model_key, head_key = jax.random.split(key)
    head = (classes + -classes % _HEAD_ROWS, subcentres, config.item_width)
    return {
        "model": init_params(config, model_key),
        # Small, so that Adam's first steps can turn the class directions.
        "arcface": _HEAD_STD * jax.random.normal(head_key, head),
    }


def abstract_state(setup: StepSetup) -> TrainState:
    """Returns the shapes, dtypes and shardings of `init_state`, without allocating anything."""
    return with_shardings(setup.mesh, jax.eval_shape(_creator(setup), jax.random.key(0)))


def init_state(setup: StepSetup) -> TrainState:
    """Makes an untrained state, each device computing only its shards."""
    create = _creator(setup)
    shardings = param_shardings(setup.mesh, jax.eval_shape(create, jax.random.key(0)))
    return jax.jit(create, out_shardings=shardings)(jax.random.key(setup.config.seed))


def _creator(setup: StepSetup):
    config = setup.config

    def create(key):
        classes, subcentres = len(setup.class_sizes), config.loss.arcface_subcentres
        params = make_params(config.model, classes, key, subcentres)
        average = params["model"] if config.optimizer.ema_decay > 0 else None
        start = _copies(params["model"], setup.anchored) if setup.anchored else None
        size = config.loss.supcon_memory
        memory = Memory.empty(size, config.model.item_width) if size else None
        opt_state = setup.optimizer.init(params)
        return TrainState(jnp.int32(0), params, opt_state, average, start, memory)

    return create


def _copies(model: dict, paths: Iterable[str]) -> dict[str, jax.Array]:
    """Returns path -> copy of these parameters of a model."""
    flat = flatten_dict(model, sep="/")
    return {path: jnp.copy(flat[path]) for path in paths}
