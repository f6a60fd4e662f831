"""Settings of the training loop and the optimizer."""

import dataclasses
import re

from capret_jax.errors import InputError

# Metrics that evaluations in training give.
CURVE_METRICS = ("mAP", "top_1", "top_5", "top_10", "top_15", "top_20")


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length of a run, and how often it logs, saves and evaluates.

    Attributes:
        steps: number of steps in the whole run.
        log_every: steps between points of the training curve; also between checks for NaN.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        evaluate_every: steps between evaluations in training; 0 for none but the final one.
        keep_best: metric of these evaluations, one of `CURVE_METRICS` or of a task's
            (`config.task.TASK_METRICS`), by which the best model is
            kept beside the newest one; evaluation, serving and `init_from` then use it. Training
            goes on from the newest. The last step is evaluated as well; a step at which SIGTERM
            stopped the run is not compared. The model is then chosen on the validation split that
            the final metrics are of, which flatters them a little. Empty to use the last model.
    """

    steps: int = 1000
    log_every: int = 50
    checkpoint_every: int = 500
    evaluate_every: int = 0
    keep_best: str = ""

    def __post_init__(self):
        if self.keep_best and not self.evaluate_every:
            raise InputError(
                f"loop.keep_best={self.keep_best!r} compares models by evaluations in training: "
                "set loop.evaluate_every."
            )
        for name in ("steps", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"loop.{name}={getattr(self, name)} must be at least 1.")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101) with X2-VLM's settings, or Muon.

    Attributes:
        name: "adamw"; or "muon" for the matrices of encoder layers and AdamW for all else, which
            learns more in a step from scratch (`train/muon.py`). Rates and decay mean the same.
        learning_rate: peak rate.
        warmup_steps: linear warm-up from 0, in steps.
        warmup_fraction: the same as a fraction of `loop.steps`, rounded down; then `warmup_steps`
            is 0.
        decay: schedule "linear" or "cosine" from the peak rate to `final_rate` at the last step.
        final_rate: rate at the last step; rates of groups end at the same share of their peaks.
        weight_decay: weight decay of matrices and embeddings; biases, norms and scales have none.
        b1, b2, eps: decay rates of Adam's moments, and its epsilon.
        clip_norm: maximal global gradient norm; 0 turns clipping off.
        rate_multipliers: (regular expression, factor) pairs; the first that matches the start of
            a parameter's path ("model/itm_head/up/kernel") scales its rate. Factor 0 leaves the
            parameter as it is, too, but its gradient still counts in the clipped norm and Adam
            still keeps its moments: `frozen` saves both.
        fresh_multiplier: factor of the rate of parameters that `init_from` has no trained values
            for, ArcFace's included, where no pattern of `rate_multipliers` matches; 2 in X2-VLM.
        layer_decay: factor of the learning rate from each layer of an encoder to the one below it,
            see `parameter_groups.rate_factors`; 1 for equal rates.
        frozen: regular expressions; parameters whose path starts with a match do not change at all:
            no update, no weight decay, no moments, no part in the clipped norm.
        drift_penalty: penalty on the distance to the parameters of `init_from`, which pulls towards
            them at this share of the learning rate a step (L2-SP, arXiv 1802.01483); 0 for none.
        ema_decay: decay of an exponential moving average of the model's parameters, which
            evaluation then uses; 0 keeps no average.
    """

    name: str = "adamw"
    learning_rate: float = 3e-5
    warmup_steps: int = 100
    warmup_fraction: float = 0.0
    decay: str = "linear"
    final_rate: float = 0.0
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    clip_norm: float = 0.0
    rate_multipliers: tuple[tuple[str, float], ...] = ()
    fresh_multiplier: float = 1.0
    layer_decay: float = 1.0
    frozen: tuple[str, ...] = ()
    drift_penalty: float = 0.0
    ema_decay: float = 0.0

    def __post_init__(self):
        if self.name not in ("adamw", "muon"):
            raise InputError(f"optimizer.name={self.name!r} is neither 'adamw' nor 'muon'.")
        if not 0 <= self.warmup_fraction < 1:
            raise InputError(f"optimizer.warmup_fraction={self.warmup_fraction} is not in [0, 1).")
        if self.warmup_fraction and self.warmup_steps:
            raise InputError(
                f"optimizer.warmup_steps={self.warmup_steps} and optimizer.warmup_fraction="
                f"{self.warmup_fraction} are two lengths of one warm-up: set one of them to 0."
            )
        if not 0 <= self.final_rate <= self.learning_rate:
            raise InputError(
                f"optimizer.final_rate={self.final_rate} is not in [0, optimizer.learning_rate="
                f"{self.learning_rate}]."
            )
        if self.fresh_multiplier < 0:
            raise InputError(f"optimizer.fresh_multiplier={self.fresh_multiplier} is negative.")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"optimizer.layer_decay={self.layer_decay} must be in (0, 1].")
        if self.drift_penalty < 0:
            raise InputError(f"optimizer.drift_penalty={self.drift_penalty} is negative.")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"optimizer.ema_decay={self.ema_decay} must be in [0, 1).")
        if self.decay not in ("linear", "cosine"):
            raise InputError(f"optimizer.decay={self.decay!r} is neither 'linear' nor 'cosine'.")
        patterns = [("rate_multipliers", pattern) for pattern, _ in self.rate_multipliers]
        for key, pattern in (*patterns, *(("frozen", pattern) for pattern in self.frozen)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"optimizer.{key}: {pattern!r}: {error}") from error

    def warmup(self, steps: int) -> int:
        """Returns the number of warm-up steps of a run of `steps`."""
        return self.warmup_steps or int(self.warmup_fraction * steps)
