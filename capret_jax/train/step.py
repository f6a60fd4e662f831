"""The jitted training step and its loss function."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from capret_jax.config import ExperimentConfig
from capret_jax.data.batch import Batch, Outputs
from capret_jax.distributed.mesh import BATCH_AXES, batch_parts, batch_sharding, replicated
from capret_jax.losses import Metrics, StepContext
from capret_jax.losses.locations import location_sequences
from capret_jax.losses.memory import Memory
from capret_jax.losses.total import total_loss
from capret_jax.models.location_tokens import LocationTokens
from capret_jax.models.x2vlm import bind
from capret_jax.train.forward import forward
from capret_jax.train.optimizer import pull_to_start, update_average
from capret_jax.train.parameter_groups import trained_mask
from capret_jax.train.setup import StepSetup
from capret_jax.train.state import TrainState, abstract_state

# The reference clamps the learned temperature to this range after each update.
TEMPERATURE_RANGE = (0.001, 0.5)

StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class LossDetails(NamedTuple):
    """Parts of the loss that a step keeps, apart from its gradient.

    Attributes:
        metrics: metrics of all terms.
        memory: the memory with this batch in it; None without one.
    """

    metrics: Metrics
    memory: Memory | None


def make_loss(setup: StepSetup):
    """Makes `loss(params, batch, key, memory) -> (() float32, LossDetails)`.

    It is differentiable in `params`. `memory` is None unless `loss.supcon_memory` is set.

    With `config.accumulation` parts, the model computes the batch a part at a time, and only its
    outputs are kept; the losses are computed on the outputs of the whole batch, and the backward
    pass computes each part again. So the loss is that of the whole batch, contrastive terms
    included (GradCache, arXiv 2101.06983).

    The weighted loss of `batch.regions`, if there is one, is added; its metrics have names that
    start with "regions/".
    """
    config, mesh = setup.config, setup.mesh
    parts, frozen = config.accumulation, config.optimizer.frozen

    def loss_of(config, params, batch, context):
        """Computes loss and metrics of one batch, and the embeddings of its items."""

        def run(params, batch, context):
            model = bind(setup.graphdef, params["model"], config.compute.dtype)
            return forward(model, params["arcface"], batch, config, context)

        if parts == 1:
            outputs = run(params, batch, context)
        else:
            outputs = _accumulate(run, params, batch, context)
        total, metrics = total_loss(outputs, batch, config.loss, context, setup.class_sizes)
        return total, metrics, outputs.item_embedding

    def loss(params, batch, key, memory=None):
        if frozen:  # their gradients are 0, and not computed
            trained = trained_mask(params, frozen)
            params = jax.tree.map(
                lambda x, kept: x if kept else jax.lax.stop_gradient(x), params, trained
            )
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            context = StepContext(mesh, key, 0, parts, memory)
            items, regions = dataclasses.replace(batch, regions=None), batch.regions
            if config.loss.locations:
                items = _with_sequences(items, config, jax.random.fold_in(key, 3))
            total, metrics, embedding = loss_of(config.item_batch(), params, items, context)
            if regions is not None:
                # Not 0 or 1, which are the two halves of the key, nor 3, which sequences have.
                context = StepContext(mesh, jax.random.fold_in(key, 2), 0, parts)
                value, theirs, _ = loss_of(config.region_batch(), params, regions, context)
                total += config.data.region_batch.weight * value
                metrics |= {f"regions/{name}": pair for name, pair in theirs.items()}
                metrics["loss"] = total, jnp.float32(1.0)
            if memory is not None:
                memory = memory.pushed(embedding, batch.identity, batch.valid)
            return total, LossDetails(metrics, memory)

    return loss


def _with_sequences(batch: Batch, config: ExperimentConfig, key: jax.Array) -> Batch:
    """Draws the sequences of a batch's objects: of all parts of it at once."""
    objects, tokens = batch.objects, LocationTokens(config.model.location_classes)
    sequences = location_sequences(objects.box, objects.category, tokens, key)
    return dataclasses.replace(batch, objects=dataclasses.replace(objects, sequences=sequences))


def _accumulate(run: Callable, params: dict, batch: Batch, context: StepContext) -> Outputs:
    """Computes the outputs for the whole batch, one part at a time."""

    @jax.checkpoint
    def one(part_batch, part):
        outputs = run(params, part_batch, dataclasses.replace(context, part=part))
        # These belong to the model, not to the batch.
        return dataclasses.replace(outputs, temperature=None, class_weights=None)

    mesh, parts = context.mesh, context.parts
    split = jax.tree.map(lambda x: _split(x, mesh, parts), batch)
    stacked = jax.lax.map(lambda xs: one(*xs), (split, jnp.arange(parts)))
    return dataclasses.replace(
        jax.tree.map(lambda x: _join(x, mesh), stacked),
        temperature=params["model"]["temperature"] if stacked.text_features is not None else None,
        class_weights=params["arcface"],
    )


def _split(x: jax.Array, mesh: Mesh, parts: int) -> jax.Array:
    """Splits (B, ...) into (parts, B / parts, ...), each example staying on its device."""
    devices = batch_parts(mesh)
    x = x.reshape(devices, parts, -1, *x.shape[1:]).swapaxes(0, 1)
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    return jax.lax.with_sharding_constraint(x.reshape(parts, -1, *x.shape[3:]), sharding)


def _join(x: jax.Array, mesh: Mesh) -> jax.Array:
    """Undoes `_split`."""
    x = x.reshape(x.shape[0], batch_parts(mesh), -1, *x.shape[2:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x.reshape(-1, *x.shape[3:]), batch_sharding(mesh))


def make_step(setup: StepSetup) -> StepFunction:
    """Makes the jitted step; it donates the memory of the old state to the new one.

    Dropout and draws of negatives and classes depend on `config.seed` and the number of the step.
    """
    config, loss = setup.config, make_loss(setup)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        differentiate = jax.grad(loss, has_aux=True)
        gradients, details = differentiate(state.params, batch, key, state.memory)
        metrics = details.metrics
        updates, opt_state = setup.optimizer.update(gradients, state.opt_state, state.params)
        if state.start is not None:
            updates = pull_to_start(updates, state, config)
        params = _clamp_temperature(optax.apply_updates(state.params, updates))
        metrics["gradient_norm"] = (optax.global_norm(gradients), jnp.float32(1.0))
        average = state.average
        if average is not None:
            decay, frozen = config.optimizer.ema_decay, config.optimizer.frozen
            average = update_average(average, params["model"], decay, state.step, frozen)
        memory = details.memory
        return TrainState(state.step + 1, params, opt_state, average, state.start, memory), metrics

    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(setup))
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(setup.mesh)),
        out_shardings=(shardings, replicated(setup.mesh)),
        donate_argnums=0,
    )


def _clamp_temperature(params):
    model = params["model"]
    clamped = jnp.clip(model["temperature"], *TEMPERATURE_RANGE)
    return params | {"model": model | {"temperature": clamped}}
