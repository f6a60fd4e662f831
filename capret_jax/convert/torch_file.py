"""Reads X2-VLM's PyTorch files (torch >= 1.6 zip pickles) without torch."""

import os
import re

import numpy as np
import ptloader
from flax.traverse_util import flatten_dict, unflatten_dict

from capret_jax.convert.names import IGNORED, reference_names
from capret_jax.convert.relative_position import interpolate_bias_table
from capret_jax.errors import InputError
from capret_jax.models.config import ModelConfig
from capret_jax.models.x2vlm import abstract_model


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Name -> array of a `.th` file, which holds a state dict or `{"model": state dict}`.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        content = ptloader.load(os.fspath(path))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not a readable torch file: {error}") from error
    state = content.get("model", content) if isinstance(content, dict) else None
    if not state or not all(isinstance(value, np.ndarray) for value in state.values()):
        raise InputError(f"{path} holds no state dict: expected names mapped to tensors.")
    return dict(state)


def from_reference(state: dict[str, np.ndarray], config: ModelConfig) -> dict:
    """Parameters of ours from a `pretrain` state dict, vision tables brought to `config.grid`.

    Args:
        state: name -> array, as `read_state_dict` returns it.
        config: the size that the file is of; `image_size` may differ from the file's.

    Returns:
        A nested dict as `init_params` makes it, float32.

    Raises:
        InputError: a name or shape is missing or unknown; the message lists all of them.
    """
    names = reference_names(config)
    known = {reference.name for reference in names.values()}
    problems = [
        f"unexpected {name} {array.shape}"
        for name, array in state.items()
        if name not in known and not any(re.fullmatch(p, name) for p in IGNORED)
    ]
    _, abstract = abstract_model(config)
    arrays = {}
    for path, wanted in flatten_dict(abstract, sep="/").items():
        name, to_ours = names[path]
        if name not in state:
            problems.append(f"missing {name}")
            continue
        array = to_ours(state[name].astype(np.float32))
        if path.endswith("relative_position_bias") and array.shape != wanted.shape:
            array = interpolate_bias_table(array, config.grid)
        if array.shape != wanted.shape:
            problems.append(
                f"{name} has shape {state[name].shape}, which gives {array.shape} "
                f"where {wanted.shape} is needed"
            )
        arrays[path] = array
    if problems:
        raise InputError("the checkpoint does not fit the model: " + "; ".join(problems))
    return unflatten_dict(arrays, sep="/")
