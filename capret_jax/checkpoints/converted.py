"""Writes and reads a converted model as a folder: Orbax checkpoint, model config and report.

params/              Orbax checkpoint of the parameters
model.json           model card: shapes, kind, paths of fresh parameters, checksum of all parameters
report.json          every name of the file: used, ignored with reason, missing
vocab.txt            tokenizer, where one was given
carried.safetensors  retained tensors, which only an export to PyTorch needs; absent if none
"""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from capret_jax.buckets.urls import absolute
from capret_jax.checkpoints.conversion import Converted
from capret_jax.checkpoints.fingerprints import checksum
from capret_jax.checkpoints.state_dict import read_state_dict, write_state_dict
from capret_jax.config import ModelConfig
from capret_jax.errors import MALFORMED_JSON, InputError, first_line

_PARAMS, _MODEL, _REPORT, _RETAINED = "params", "model.json", "report.json", "carried.safetensors"
VOCABULARY = "vocab.txt"
# The kind of published checkpoints that were trained to generate captions, and their prompt.
CAPTION_KIND, _PUBLISHED_PROMPT = "caption_mlm", "a picture of"


class ModelCard(NamedTuple):
    """Description of a saved model; the content of model.json.

    Attributes:
        config: shapes of the parameters.
        kind: kind of the file that the model was converted from.
        fresh: paths of the parameters without trained values, which are random.
        checksum: of the parameters, see `fingerprints.checksum`; None in older folders.
        prompt: words with which the captions that the model writes begin; empty for none.
    """

    config: ModelConfig
    kind: str
    fresh: list[str]
    checksum: int | None = None
    prompt: str = ""


def is_converted(folder: pathlib.Path) -> bool:
    """Returns True if `save_converted` wrote this folder."""
    return (folder / _MODEL).is_file() and (folder / _PARAMS).is_dir()


def save_converted(
    folder: pathlib.Path,
    converted: Converted,
    overwrite: bool = False,
    vocabulary: pathlib.Path | None = None,
    prompt: str | None = None,
) -> None:
    """Writes the folder; it appears under its name only when it is complete.

    Args:
        folder: folder to create.
        converted: model to save. Its parameters are replaced by JAX arrays one by one, so that they
            are in memory only once.
        overwrite: True to replace an existing converted checkpoint.
        vocabulary: the tokenizer's vocab.txt, which is copied; None where there is none.
        prompt: prompt of the model's captions; None for that of the published files.

    Raises:
        InputError: the folder exists and may not be overwritten, or cannot be written.
    """
    check_free(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            complete = pathlib.Path(scratch) / "converted"
            complete.mkdir()
            _write(complete, converted, prompt)
            if vocabulary is not None:
                shutil.copyfile(vocabulary, complete / VOCABULARY)
            if folder.exists():
                os.rename(folder, pathlib.Path(scratch) / "replaced")
            os.rename(complete, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from error


def check_free(folder: pathlib.Path, overwrite: bool) -> None:
    """Checks that `save_converted` may write a folder.

    Raises:
        InputError: the path exists; with `overwrite`, it is not a converted checkpoint.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise InputError(f"{folder} exists; add --overwrite, or choose another folder.")
    known = {_PARAMS, _MODEL, _REPORT, _RETAINED, VOCABULARY}
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - known:
        raise InputError(
            f"{folder} holds other things than a converted checkpoint and is not overwritten; "
            "choose another folder."
        )


def _write(folder: pathlib.Path, converted: Converted, prompt: str | None) -> None:
    _move_to_cpu(converted.params)
    context = ocp.Context()
    # Without this limit, Orbax holds a second copy of all parameters.
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
        "checksum": int(checksum(converted.params)),
        "prompt": _published_prompt(report.kind) if prompt is None else prompt,
    }
    _write_json(folder / _MODEL, model)
    _write_json(folder / _REPORT, dataclasses.asdict(report))
    if converted.retained:
        write_state_dict(folder / _RETAINED, converted.retained, "safetensors")


def _published_prompt(kind: str) -> str:
    """Returns the prompt that published files of a kind were trained with; empty for none."""
    return _PUBLISHED_PROMPT if kind == CAPTION_KIND else ""


def _move_to_cpu(tree: dict) -> None:
    """Replaces each leaf by a JAX array, which frees the memory of the leaf."""
    cpu = jax.local_devices(backend="cpu")[0]
    for name, value in tree.items():
        if isinstance(value, dict):
            _move_to_cpu(value)
        else:
            tree[name] = jax.device_put(value, cpu).block_until_ready()


def _write_json(path: pathlib.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_card(folder: pathlib.Path) -> ModelCard:
    """Reads the model card of a converted model.

    Raises:
        InputError: model.json is missing or damaged.
    """
    try:
        content = json.loads((folder / _MODEL).read_text())
        model, kind = ModelConfig(**content["model"]), str(content["kind"])
        # Folders of versions without a prompt hold published files.
        prompt = str(content.get("prompt", _published_prompt(kind)))
        return ModelCard(model, kind, list(content["fresh"]), content.get("checksum"), prompt)
    except (OSError, *MALFORMED_JSON) as error:
        raise InputError(f"{folder / _MODEL} is no model config: {error}.") from error


def load_params(folder: pathlib.Path, abstract: Any) -> dict:
    """Reads the parameters of a converted model.

    Args:
        folder: folder of the model.
        abstract: tree of `jax.ShapeDtypeStruct`, with the shardings to load to, if any.

    Raises:
        InputError: the checkpoint cannot be read, or is not what was saved.
    """
    try:
        params = ocp.load(absolute(folder / _PARAMS), abstract)
    except Exception as error:  # Orbax raises many types, even plain `Exception`
        raise InputError(f"{folder / _PARAMS} cannot be read: {first_line(error)}") from error
    saved = read_card(folder).checksum
    if saved is not None and int(checksum(params)) != saved:
        raise InputError(f"{folder / _PARAMS} is damaged: convert the file again.")
    return params


def load_retained(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the retained tensors, which an export to PyTorch needs; empty if there are none."""
    path = folder / _RETAINED
    return read_state_dict(path) if path.exists() else {}


def on_one_device(abstract: dict) -> dict:
    """Places abstract parameters on JAX's default device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )
