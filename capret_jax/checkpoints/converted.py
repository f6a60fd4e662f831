"""A converted model as a folder: Orbax checkpoint, model config and report.

params/              Orbax checkpoint of the parameters
model.json           what a reader of params/ needs: shapes, kind, what is fresh
report.json          every name of the file: used, ignored with why, missing
carried.safetensors  what only the way back needs, where the file had any
"""

import dataclasses
import json
import os
import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import orbax.checkpoint.experimental.v1 as ocp

from capret_jax.checkpoints.conversion import Converted
from capret_jax.checkpoints.state_dict import read_state_dict, write_state_dict
from capret_jax.config import ModelConfig
from capret_jax.errors import InputError

_PARAMS, _MODEL, _REPORT, _CARRIED = "params", "model.json", "report.json", "carried.safetensors"


class ModelCard(NamedTuple):
    """What model.json says.

    Attributes:
        config: of the parameters beside it.
        kind: of the file that it was converted from.
        fresh: paths of the parameters that the file did not hold; their values are random.
    """

    config: ModelConfig
    kind: str
    fresh: list[str]


def is_converted(folder: pathlib.Path) -> bool:
    """Whether `save_converted` wrote this folder."""
    return (folder / _MODEL).is_file() and (folder / _PARAMS).is_dir()


def save_converted(folder: pathlib.Path, converted: Converted, overwrite: bool = False) -> None:
    """Writes the folder; it appears under its name when it is complete.

    Args:
        folder: to be.
        converted: its parameters become JAX arrays one by one, so that they are in memory once.
        overwrite: a converted checkpoint that is there already.

    Raises:
        InputError: the folder exists and may not be overwritten, or cannot be written.
    """
    check_free(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            complete = pathlib.Path(scratch) / "converted"
            complete.mkdir()
            _write(complete, converted)
            if folder.exists():
                os.rename(folder, pathlib.Path(scratch) / "replaced")
            os.rename(complete, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from error


def check_free(folder: pathlib.Path, overwrite: bool) -> None:
    """
    Raises:
        InputError: something is there already; with `overwrite`, something else than a converted
            checkpoint.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise InputError(f"{folder} exists; add --overwrite, or choose another folder.")
    known = {_PARAMS, _MODEL, _REPORT, _CARRIED}
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - known:
        raise InputError(
            f"{folder} holds other things than a converted checkpoint and is not overwritten; "
            "choose another folder."
        )


def _write(folder: pathlib.Path, converted: Converted) -> None:
    _move_to_cpu(converted.params)
    context = ocp.Context()
    # All at once, Orbax would hold a second copy.
    context.memory.write_concurrent_bytes = 2 * max(
        leaf.nbytes for leaf in jax.tree.leaves(converted.params)
    )
    with context:
        ocp.save((folder / _PARAMS).absolute(), converted.params)
    report = converted.report
    model = {
        "model": dataclasses.asdict(converted.config),
        "kind": report.kind,
        "fresh": list(report.missing.values()),
    }
    _write_json(folder / _MODEL, model)
    _write_json(folder / _REPORT, dataclasses.asdict(report))
    if converted.carried:
        write_state_dict(folder / _CARRIED, converted.carried, "safetensors")


def _move_to_cpu(tree: dict) -> None:
    """Puts a JAX array in the place of each leaf, which lets go of the memory behind it."""
    cpu = jax.local_devices(backend="cpu")[0]
    for name, value in tree.items():
        if isinstance(value, dict):
            _move_to_cpu(value)
        else:
            tree[name] = jax.device_put(value, cpu).block_until_ready()


def _write_json(path: pathlib.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_card(folder: pathlib.Path) -> ModelCard:
    """
    Raises:
        InputError: model.json is missing or damaged.
    """
    try:
        content = json.loads((folder / _MODEL).read_text())
        return ModelCard(ModelConfig(**content["model"]), content["kind"], content["fresh"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / _MODEL} is no model config: {error}.") from error


def load_params(folder: pathlib.Path, abstract: Any) -> dict:
    """The parameters, as `abstract` (a tree of `jax.ShapeDtypeStruct`, sharded or not) asks.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    try:
        return ocp.load((folder / _PARAMS).absolute(), abstract)
    except Exception as error:  # Orbax raises all kinds, `Exception` itself among them
        raise InputError(f"{folder / _PARAMS} cannot be read: {error}") from error


def load_carried(folder: pathlib.Path) -> dict:
    """Tensors for the way back; empty where there are none."""
    path = folder / _CARRIED
    return read_state_dict(path) if path.exists() else {}


def on_one_device(abstract: dict) -> dict:
    """The abstract parameters, placed on JAX's default device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )
