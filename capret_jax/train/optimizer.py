"""AdamW with parameter groups by path, learning-rate warm-up and decay."""

import re

import jax
import jax.numpy as jnp
import optax

from capret_jax.config import OptimizerConfig
from capret_jax.distributed.mesh import path_name
from capret_jax.errors import InputError

_DECAYED = re.compile(r".*/(kernel|embedding)|arcface")


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Makes the learning-rate schedule: linear warm-up, then decay to 0 at `total_steps`.

    Raises:
        InputError: the warm-up does not end before the last step.
    """
    if config.warmup_steps >= total_steps:
        raise InputError(
            f"optimizer.warmup_steps={config.warmup_steps} must be less than steps={total_steps}."
        )
    peak, rest = config.learning_rate, total_steps - config.warmup_steps
    decay = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }[config.decay]
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Makes the update rule, from gradients to parameter updates.

    Raises:
        InputError: the warm-up does not end before the last step.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.stateless(lambda updates, _: scale_by_group(updates, config.rate_multipliers)),
        optax.scale_by_learning_rate(make_schedule(config, total_steps)),
    )


def update_average(average, params, decay: float, step: jax.Array):
    """Updates the exponential moving average of the parameters.

    The decay is at most (1 + step) / (10 + step), as in TensorFlow's `ExponentialMovingAverage`, so
    that the random initial parameters soon lose their weight.

    Args:
        average: a tree of float32 arrays.
        params: the parameters after the step, a tree of the same structure.
        decay: the decay of later steps.
        step: () int32, number of steps done before this one.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, average, 1 - kept)


def decay_mask(params):
    """Returns a tree of bool, True for parameters with weight decay."""
    return jax.tree.map_with_path(
        lambda path, _: _DECAYED.fullmatch(path_name(path)) is not None, params
    )


def scale_by_group(updates, rate_multipliers: tuple[tuple[str, float], ...]):
    """Multiplies each update by the factor of the first pattern that matches its path's start."""

    def scaled(path, update):
        name = path_name(path)
        factors = (factor for pattern, factor in rate_multipliers if re.match(pattern, name))
        return update * next(factors, 1.0)

    return jax.tree.map_with_path(scaled, updates)
