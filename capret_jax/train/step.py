"""One training step, compiled once for the mesh."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from capret_jax.config import LossConfig
from capret_jax.data.batch import Batch, Outputs
from capret_jax.distributed.mesh import BATCH_AXES, batch_parts, batch_sharding, replicated
from capret_jax.losses import Metrics
from capret_jax.losses.total import total_loss
from capret_jax.models.x2vlm import bind
from capret_jax.train.forward import forward
from capret_jax.train.optimizer import update_average
from capret_jax.train.state import TrainState

# The reference clamps the learned temperature to this range after each update.
TEMPERATURE_RANGE = (0.001, 0.5)

StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_loss(
    graphdef: nnx.GraphDef,
    config: LossConfig,
    regions: bool,
    mesh: Mesh,
    class_sizes: np.ndarray,
    dtype: str = "float32",
    parts: int = 1,
):
    """`loss(params, batch, key) -> (() float32, metrics)`, differentiable in `params`.

    With several parts, the model sees the batch a part at a time and keeps nothing of it but the
    outputs, which the losses see whole; the backward pass computes each part again. So the loss is
    that of the whole batch, contrastive terms included (GradCache, arXiv 2101.06983).
    """

    def run(params, batch, key, part):
        model = bind(graphdef, params["model"], dtype)
        weights = params["arcface"]
        return forward(model, weights, batch, config, regions, mesh, key, part, parts)

    def loss(params, batch, key):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            if parts == 1:
                outputs = run(params, batch, key, 0)
            else:
                outputs = _in_parts(run, params, batch, key, mesh, parts)
            return total_loss(outputs, batch, config, mesh, key, class_sizes)

    return loss


def _in_parts(run, params: dict, batch: Batch, key: jax.Array, mesh: Mesh, parts: int) -> Outputs:
    """The outputs for the whole batch, computed a part at a time."""

    @jax.checkpoint
    def one(part_batch, part):
        outputs = run(params, part_batch, key, part)
        # These are the model's, not the batch's.
        return dataclasses.replace(outputs, temperature=None, class_weights=None)

    split = jax.tree.map(lambda x: _split(x, mesh, parts), batch)
    stacked = jax.lax.map(lambda xs: one(*xs), (split, jnp.arange(parts)))
    return dataclasses.replace(
        jax.tree.map(lambda x: _join(x, mesh), stacked),
        temperature=params["model"]["temperature"] if stacked.text_features is not None else None,
        class_weights=params["arcface"],
    )


def _split(x: jax.Array, mesh: Mesh, parts: int) -> jax.Array:
    """(B, ...) -> (parts, B / parts, ...), each device's examples staying where they are."""
    devices = batch_parts(mesh)
    x = x.reshape(devices, parts, -1, *x.shape[1:]).swapaxes(0, 1)
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    return jax.lax.with_sharding_constraint(x.reshape(parts, -1, *x.shape[3:]), sharding)


def _join(x: jax.Array, mesh: Mesh) -> jax.Array:
    """What `_split` did, undone."""
    x = x.reshape(x.shape[0], batch_parts(mesh), -1, *x.shape[2:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x.reshape(-1, *x.shape[3:]), batch_sharding(mesh))


def make_step(
    graphdef: nnx.GraphDef,
    config: LossConfig,
    regions: bool,
    dtype: str,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    abstract: TrainState,
    seed: int,
    class_sizes: np.ndarray,
    parts: int = 1,
    ema_decay: float = 0.0,
) -> StepFunction:
    """Compiles lazily; the old state's memory is reused for the new one.

    Args:
        graphdef: the model's structure.
        config: the loss.
        regions: whether items are regions of their pictures.
        dtype: to compute in, see `ComputeConfig`.
        optimizer: from `make_optimizer`.
        mesh: what state and batch are sharded over.
        abstract: from `abstract_state`.
        seed: of dropout and of the draws of negatives; combined with the step's number.
        class_sizes: (C,) int, training examples per class.
        parts: that a batch is computed in, one after the other, see `make_loss`.
        ema_decay: of the state's average, if it has one.
    """
    loss = make_loss(graphdef, config, regions, mesh, class_sizes, dtype, parts)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradients, metrics = jax.grad(loss, has_aux=True)(state.params, batch, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = _clamp_temperature(optax.apply_updates(state.params, updates))
        metrics["gradient_norm"] = (optax.global_norm(gradients), jnp.float32(1.0))
        average = state.average
        if average is not None:
            average = update_average(average, params["model"], ema_decay, state.step)
        return TrainState(state.step + 1, params, opt_state, average), metrics

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
