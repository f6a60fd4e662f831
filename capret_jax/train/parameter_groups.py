"""Groups of parameters by path: weight decay, learning rates, and parts that stay as they are."""

import re
from collections.abc import Collection, Iterable

import jax

from capret_jax.config import ModelConfig, OptimizerConfig
from capret_jax.distributed.mesh import path_name
from capret_jax.errors import InputError

_DECAYED = re.compile(r".*/(kernel|embedding)|arcface")
# Path of a layer -> its encoder and number; text and fusion layers are one stack.
_LAYER = re.compile(r"model/(vision/blocks|text/layers|fusion/layers)/(\d+)/")
_EMBEDDINGS = re.compile(r"model/(vision/(patch_embed|cls_token)|text/embeddings)")


def decay_mask(params):
    """Returns a tree of bool, True for parameters with weight decay."""
    return _by_name(params, lambda name: _DECAYED.fullmatch(name) is not None)


def trained_mask(params, frozen: tuple[str, ...]):
    """Returns a tree of bool, False for parameters whose path starts with a frozen pattern."""
    return _by_name(params, lambda name: not _is_frozen(name, frozen))


def _is_frozen(name: str, frozen: tuple[str, ...]) -> bool:
    return any(re.match(pattern, name) for pattern in frozen)


def rate_factors(params, config: OptimizerConfig, model: ModelConfig, fresh: Collection[str] = ()):
    """Returns a tree of float, the factor of each parameter's learning rate.

    It is the product of the first of `rate_multipliers` that matches the start of the path, and of
    the layer's `layer_decay` ** d (BEiT, arXiv 2106.08254, appendix). Here d is L - i for layer i
    of the L layers of an encoder, L + 1 for the embeddings below them, and 0 for the norm behind
    them, heads, projections, the decoders of answers and locations, and ArcFace. Text and fusion
    layers are one stack.

    Args:
        params: a tree of the parameters' structure.
        config: factors of groups and layers.
        model: number of layers.
        fresh: paths of the parameters whose factor is `fresh_multiplier` where no pattern matches,
            as in X2-VLM, whose rates of encoders come before the one of fresh parameters.
    """
    depths = model.vision_depth, model.text_layers + model.fusion_layers

    def factor(name: str) -> float:
        multipliers = (
            value for pattern, value in config.rate_multipliers if re.match(pattern, name)
        )
        distance = _distance_to_top(name, *depths, model.text_layers)
        default = config.fresh_multiplier if name in fresh else 1.0
        return next(multipliers, default) * config.layer_decay**distance

    return _by_name(params, factor)


def _distance_to_top(name: str, vision: int, stack: int, text: int) -> int:
    """Returns the d of `rate_factors`.

    Args:
        name: path of a parameter.
        vision: number of layers of the vision encoder.
        stack: number of text and fusion layers.
        text: number of text layers.
    """
    if layer := _LAYER.match(name):
        encoder, number = layer[1], int(layer[2])
        if encoder == "vision/blocks":
            return vision - number
        return stack - number - (text if encoder == "fusion/layers" else 0)
    if embeddings := _EMBEDDINGS.match(name):
        return 1 + (vision if embeddings[1].startswith("vision") else stack)
    return 0


def check_patterns(config: OptimizerConfig, names: Iterable[str], reached: set[str]) -> None:
    """Checks that patterns match parameters, and that some parameter is trained.

    Args:
        config: `rate_multipliers` and `frozen` are read.
        names: paths of all parameters.
        reached: starts of the paths that the gradients of the losses reach, such as
            "model/vision" and "arcface".

    Raises:
        InputError: a pattern matches none, or all that the losses reach is frozen.
    """
    names = list(names)
    patterns = [("rate_multipliers", pattern) for pattern, _ in config.rate_multipliers]
    patterns += [("frozen", pattern) for pattern in config.frozen]
    for key, pattern in patterns:
        if not any(re.match(pattern, name) for name in names):
            parts = sorted({"/".join(name.split("/")[:2]) for name in names})
            raise InputError(
                f"config.optimizer.{key}: {pattern!r} matches no parameter; their paths start with "
                f"{', '.join(parts)}."
            )
    trained = [name for name in names if "/".join(name.split("/")[:2]) in reached]
    if config.frozen and all(_is_frozen(name, config.frozen) for name in trained):
        raise InputError(
            f"config.optimizer.frozen={config.frozen} matches every parameter that the losses "
            f"train, in {', '.join(sorted(reached))}: leave one out."
        )


def _by_name(params, function):
    return jax.tree.map_with_path(lambda path, _: function(path_name(path)), params)
