"""One training step, compiled once for the mesh."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from capret_jax.batch import Batch
from capret_jax.losses import Metrics
from capret_jax.losses.total import LossConfig, total_loss
from capret_jax.mesh import batch_sharding, replicated
from capret_jax.models.x2vlm import bind
from capret_jax.train.forward import forward
from capret_jax.train.state import TrainState

# The reference clamps the learned temperature to this range after each update.
TEMPERATURE_RANGE = (0.001, 0.5)

StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_loss(
    graphdef: nnx.GraphDef, config: LossConfig, regions: bool, mesh: Mesh, class_sizes: np.ndarray
):
    """`loss(params, batch, key) -> (() float32, metrics)`, differentiable in `params`."""

    def loss(params, batch, key):
        model = bind(graphdef, params["model"])
        outputs = forward(model, params["arcface"], batch, config, regions, mesh, key)
        return total_loss(outputs, batch, config, mesh, key, class_sizes)

    return loss


def make_step(
    graphdef: nnx.GraphDef,
    config: LossConfig,
    regions: bool,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    abstract: TrainState,
    seed: int,
    class_sizes: np.ndarray,
) -> StepFunction:
    """Compiles lazily; the old state's memory is reused for the new one.

    Args:
        graphdef: the model's structure.
        config: the loss.
        regions: whether items are regions of their pictures.
        optimizer: from `make_optimizer`.
        mesh: what state and batch are sharded over.
        abstract: from `abstract_state`.
        seed: of dropout and of the draws of negatives; combined with the step's number.
        class_sizes: (C,) int, training examples per class.
    """
    loss = make_loss(graphdef, config, regions, mesh, class_sizes)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradients, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = _clamp_temperature(optax.apply_updates(state.params, updates))
        metrics["gradient_norm"] = (optax.global_norm(gradients), jnp.float32(1.0))
        return TrainState(state.step + 1, params, opt_state), metrics

    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def _clamp_temperature(params):
    model = params["model"]
    clamped = jnp.clip(model["temperature"], *TEMPERATURE_RANGE)
    return params | {"model": model | {"temperature": clamped}}
