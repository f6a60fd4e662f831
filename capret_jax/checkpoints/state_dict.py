"""Reads and writes state dicts, names mapped to arrays, in PyTorch's zip format or safetensors.

Exports hold the shapes of their model beside it, since tensors do not tell the number of heads:
under "capret_jax_model", a dict in PyTorch's format, JSON in the metadata of safetensors.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from capret_jax.checkpoints.torch_file import read_torch_file, write_torch_file
from capret_jax.errors import InputError

FORMATS = ("torch", "safetensors")
_SHAPES = "capret_jax_model"


class TorchCheckpoint(NamedTuple):
    """Content of a PyTorch file.

    Attributes:
        state: name -> array.
        shapes: field of `ModelConfig` -> value, as an export says them; empty for other files.
    """

    state: dict[str, np.ndarray]
    shapes: dict[str, Any]


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads name -> array; format and errors are those of `read_checkpoint`."""
    return read_checkpoint(path).state


def read_checkpoint(path: str | os.PathLike) -> TorchCheckpoint:
    """Reads a torch zip file or a safetensors file.

    The first bytes tell the formats apart. A torch file holds either the state dict itself or
    `{"model": state dict}`.

    Raises:
        InputError: the file cannot be read, or does not hold a state dict.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(9)
        # A safetensors file starts with 8 bytes of length and a JSON object.
        content = _read_safetensors(path) if header[8:] == b"{" else read_torch_file(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict.")
    state = content.get("model", content)
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path} holds no state dict: expected names mapped to tensors.")
    for name, value in state.items():
        if not isinstance(value, np.ndarray):
            raise InputError(
                f"{path} holds no state dict: {name!r} is a {type(value).__name__}, not a tensor; "
                "expected names mapped to tensors, or such a dict under 'model'."
            )
    shapes = content.get(_SHAPES, {})
    if not isinstance(shapes, dict):
        raise InputError(f"{path} is damaged: its {_SHAPES} is a {type(shapes).__name__}.")
    return TorchCheckpoint(dict(state), dict(shapes))


def _read_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """Returns {"model": state dict}, with the shapes beside it if the file has them."""
    try:
        with safetensors.safe_open(path, framework="np", backend="pread") as file:
            names = file.keys()
            _check_dtypes(path, {name: file.get_slice(name).get_dtype() for name in names})
            state = file.get_tensors()
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}.") from error
    # safetensors.torch.save_model writes tied parameters once; their other names are metadata.
    aliases = {alias: name for alias, name in metadata.items() if name in state}
    state |= {alias: state[name] for alias, name in aliases.items() if alias not in state}
    try:
        shapes = {_SHAPES: json.loads(metadata[_SHAPES])} if _SHAPES in metadata else {}
    except ValueError as error:
        raise InputError(f"{path} is damaged: its {_SHAPES} is no JSON: {error}.") from error
    return {"model": state, **shapes}


def _check_dtypes(path: str | os.PathLike, dtypes: Mapping[str, str]) -> None:
    """Refuses quantised tensors, which NumPy cannot hold."""
    for name, dtype in dtypes.items():
        if dtype.startswith(("F8", "F6", "F4")):
            raise InputError(
                f"{path} is quantised: {name} has dtype {dtype}; convert the original checkpoint, "
                "of float16 or wider."
            )


def write_state_dict(
    path: pathlib.Path,
    state: Mapping[str, np.ndarray],
    file_format: str,
    shapes: Mapping[str, Any] | None = None,
) -> None:
    """Writes a file of one of `FORMATS`: `{"model": state}` to torch, `state` to safetensors.

    Args:
        path: file to write.
        state: name -> array.
        file_format: one of `FORMATS`.
        shapes: `TorchCheckpoint.shapes`; None for a file without them.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        if file_format == "torch":
            write_torch_file(path, state, {_SHAPES: shapes} if shapes else None)
        else:
            # The library assumes that each array is contiguous in memory.
            contiguous = {name: np.asarray(array, order="C") for name, array in state.items()}
            metadata = {"format": "pt"} | ({_SHAPES: json.dumps(shapes)} if shapes else {})
            safetensors.numpy.save_file(contiguous, path, metadata=metadata)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} cannot be written: {error}.") from error
