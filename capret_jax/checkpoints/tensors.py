"""Converts named tensors of a state dict to parameters, and says which do not fit."""

import collections
import functools
import types
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from capret_jax.checkpoints.names import ReferenceTensor
from capret_jax.config import ModelConfig
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import abstract_model

_SHOWN_PROBLEMS = 8


@functools.lru_cache
def parameter_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Returns path -> shape of each parameter of the model."""
    _, abstract = abstract_model(config)
    shapes = {path: leaf.shape for path, leaf in flatten_dict(abstract, sep="/").items()}
    return types.MappingProxyType(shapes)


def convert_tensors(
    state: Mapping[str, np.ndarray],
    names: Mapping[str, ReferenceTensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Converts named tensors of a state dict to parameters.

    Args:
        state: name -> array.
        names: path of each parameter -> its tensor in the state dict.
        shapes: path -> shape of the parameter.

    Returns:
        Path -> float32 array, and a message for each tensor that is missing or does not fit.
    """
    arrays, problems = {}, []
    for path, (name, layout) in names.items():
        # A broadcast scalar needs no memory; only the shape of the result is used.
        expected = layout.to_torch(np.broadcast_to(np.float32(0), shapes[path])).shape
        array = state.get(name)
        if array is None:
            problems.append(f"missing {name}")
        elif array.shape != expected:
            problems.append(f"{name} has shape {array.shape} where {expected} is needed")
        # Quantised to 8 bits, weights make sense only with their scales.
        elif not jnp.issubdtype(array.dtype, jnp.floating) or array.itemsize < 2:
            problems.append(f"{name} has dtype {array.dtype} where float16 or wider is needed")
        elif bad := int(array.size - np.isfinite(array).sum()):
            problems.append(f"{name} has {bad} NaN or infinite values: its training diverged")
        else:
            arrays[path] = layout.to_jax(array).astype(np.float32, copy=False)
    return arrays, problems


def raise_if_any(problems: list[str], message: str) -> None:
    """Raises an error that lists the first problems, if there are any.

    Raises:
        InputError: `problems` is not empty.
    """
    if problems:
        shown = "; ".join(problems[:_SHOWN_PROBLEMS])
        more = len(problems) - _SHOWN_PROBLEMS
        raise InputError(f"{message}: {shown}{f'; and {more} more' if more > 0 else ''}.")


def paths_by_name(names: Mapping[str, ReferenceTensor]) -> dict[str, list[str]]:
    """Name in the file -> paths of the parameters that it fills."""
    used: dict[str, list[str]] = {}
    for path, tensor in names.items():
        used.setdefault(tensor.name, []).append(path)
    return used


def dtype_notes(arrays: Iterable[np.ndarray]) -> list[str]:
    """Returns one line for each dtype other than float32, with the number of tensors."""
    dtypes = collections.Counter(array.dtype.name for array in arrays)
    rounding = {"float16": "exactly", "bfloat16": "exactly"}
    return [
        f"{count} tensors of {dtype} were converted to float32 {rounding.get(dtype, 'by rounding')}"
        for dtype, count in dtypes.items()
        if dtype != "float32"
    ]
