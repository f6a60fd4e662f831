"""AdamW with groups by parameter path, warm-up and decay."""

import re

import jax
import jax.numpy as jnp
import optax

from capret_jax.config import OptimizerConfig
from capret_jax.distributed.mesh import path_name
from capret_jax.errors import InputError

_DECAYED = re.compile(r".*/(kernel|embedding)|arcface")


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Step -> learning rate: linear warm-up, then decay to 0 at `total_steps`.

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
    """The whole update rule, from gradients to parameter updates."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.stateless(lambda updates, _: scale_by_group(updates, config.rate_multipliers)),
        optax.scale_by_learning_rate(make_schedule(config, total_steps)),
    )


def update_average(average, params, decay: float, step: jax.Array):
    """The exponential moving average of parameters after one more step.

    Early on the decay is (1 + step) / (10 + step), so that the random start is soon forgotten, as
    TensorFlow's `ExponentialMovingAverage` has it.

    Args:
        average: a tree of float32.
        params: the same tree, after the step.
        decay: its largest value.
        step: () int32, steps done before.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, average, 1 - kept)


def decay_mask(params):
    """A tree of bool: True where weight decay applies."""
    return jax.tree.map_with_path(
        lambda path, _: _DECAYED.fullmatch(path_name(path)) is not None, params
    )


def scale_by_group(updates, rate_multipliers: tuple[tuple[str, float], ...]):
    """Each update times the factor of the first pattern that its path starts with."""

    def scaled(path, update):
        name = path_name(path)
        factors = (factor for pattern, factor in rate_multipliers if re.match(pattern, name))
        return update * next(factors, 1.0)

    return jax.tree.map_with_path(scaled, updates)
