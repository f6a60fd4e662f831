"""AdamW or Muon with parameter groups by path, learning-rate warm-up and decay."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from capret_jax.config import ExperimentConfig, OptimizerConfig
from capret_jax.distributed.mesh import path_name
from capret_jax.errors import InputError
from capret_jax.train.muon import muon_or_adam
from capret_jax.train.parameter_groups import decay_mask, rate_factors, trained_mask


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Makes the learning-rate schedule: linear warm-up, then decay to the rate at `total_steps`.

    Raises:
        InputError: the warm-up does not end before the last step.
    """
    if config.warmup_steps >= total_steps:
        raise InputError(
            f"optimizer.warmup_steps={config.warmup_steps} must be less than steps={total_steps}."
        )
    peak, last, steps = config.learning_rate, config.final_rate, config.warmup(total_steps)
    rest = total_steps - steps
    decay = {
        "linear": optax.linear_schedule(peak, last, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, last / peak if last else 0.0),
    }[config.decay]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, steps), decay], [steps])


def make_optimizer(
    config: ExperimentConfig, fresh: Collection[str] = ()
) -> optax.GradientTransformation:
    """Makes the update rule, from gradients to parameter updates.

    Frozen parameters have no moments, and their gradients do not count in the clipped norm.

    Args:
        config: `optimizer`, `model` and `loop.steps` are read.
        fresh: paths of the parameters that `optimizer.fresh_multiplier` is for.

    Raises:
        InputError: the warm-up does not end before the last step.
    """
    settings = config.optimizer

    def scaled(updates, _):
        factors = rate_factors(updates, settings, config.model, fresh)
        return jax.tree.map(jnp.multiply, updates, factors)

    adam = optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=settings.eps)
    rule = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity(),
        adam if settings.name == "adamw" else muon_or_adam(adam),
        optax.add_decayed_weights(settings.weight_decay, mask=decay_mask),
        optax.stateless(scaled),
        optax.scale_by_learning_rate(make_schedule(settings, config.loop.steps)),
    )
    if not settings.frozen:
        return rule
    return optax.masked(rule, lambda params: trained_mask(params, settings.frozen))


def pull_to_start(updates, state: Any, config: ExperimentConfig):
    """Adds the gradient of a penalty on the distance to the start (L2-SP, arXiv 1802.01483, eq. 2).

    Like AdamW's weight decay, it does not pass through the moments: each parameter that has a start
    moves towards it by rate * drift_penalty * (parameter - start), with its own learning rate.

    Args:
        updates: a tree of updates, as the optimizer gave them.
        state: training state before the step; its `start` is not None.
        config: `optimizer`, `model` and `loop.steps` are read.
    """
    settings = config.optimizer
    rate = settings.drift_penalty * make_schedule(settings, config.loop.steps)(state.step)
    # Parameters that have a start are not fresh.
    factors = rate_factors(updates, settings, config.model)

    def pulled(path, update, param, factor):
        start = state.start.get(path_name(path).removeprefix("model/"))
        return update if start is None else update - rate * factor * (param - start)

    return jax.tree.map_with_path(pulled, updates, state.params, factors)


def update_average(average, params, decay: float, step: jax.Array, frozen: tuple[str, ...] = ()):
    """Updates the exponential moving average of the parameters.

    The decay is at most (1 + step) / (10 + step), as in TensorFlow's `ExponentialMovingAverage`, so
    that the random initial parameters soon lose their weight.

    Args:
        average: a tree of float32 arrays.
        params: the parameters after the step, a tree of the same structure.
        decay: the decay of later steps.
        step: () int32, number of steps done before this one.
        frozen: patterns of `optimizer.frozen`, for paths that start with "model/"; the averages of
            these parameters stay as they are, since rounding would change them.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    moved = optax.incremental_update(params, average, 1 - kept)
    trained = trained_mask({"model": average}, frozen)["model"]
    return jax.tree.map(lambda new, old, moves: new if moves else old, moved, average, trained)
