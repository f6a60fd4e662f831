"""Recognises the size and the kind of a PyTorch file of X2-VLM from names and shapes."""

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from capret_jax.checkpoints.kinds import KINDS
from capret_jax.checkpoints.names import FRAME_POSITIONS, ignored_names, reference_names
from capret_jax.config import SIZES, ModelConfig
from capret_jax.config.model import PATCH_SIZE
from capret_jax.errors import MALFORMED_JSON, InputError
from capret_jax.models.beit import relative_position_rows

_MODULE_PREFIX = "module."
# Shapes that make a size; the other fields of a config are no shapes, or parts of a kind.
_SIZE_FIELDS = (
    "vision_width", "vision_depth", "vision_heads",
    "text_width", "text_heads", "text_hidden", "text_layers", "fusion_layers",
    "vocab_size", "max_positions", "embed_dim",
)  # fmt: skip


def without_module_prefix(
    state: Mapping[str, np.ndarray],
) -> tuple[Mapping[str, np.ndarray], list[str]]:
    """Removes the prefix of DistributedDataParallel, if all names have it, and notes that."""
    if not all(name.startswith(_MODULE_PREFIX) for name in state):
        return state, []
    note = f"every name starts with {_MODULE_PREFIX}, which is left out here"
    return {name.removeprefix(_MODULE_PREFIX): array for name, array in state.items()}, [note]


def config_of_shapes(shapes: Mapping[str, Any]) -> ModelConfig | None:
    """Returns the config that an export of capret_jax says; None where it says none.

    Args:
        shapes: field of `ModelConfig` -> value.

    Raises:
        InputError: these are no shapes of a model.
    """
    try:
        return ModelConfig(**shapes) if shapes else None
    except MALFORMED_JSON as error:
        raise InputError(
            f"the shapes that the file says are of no model ({error}): name a folder of a model "
            "with its shapes, --like=DIR."
        ) from error


def published_config(state: Mapping[str, np.ndarray]) -> ModelConfig:
    """Returns the size that most tensors have, so that errors name only the deviating tensors.

    Raises:
        InputError: no published size has a vision encoder of this width.
    """
    width = _most_common(state, "norm1.weight", axis=0)
    for config in SIZES.values():
        if width == config.vision_width:
            return config
    known = ", ".join(f"{size} {config.vision_width}" for size, config in SIZES.items())
    raise InputError(
        f"the vision encoder's width {width} is of no known size ({known}), and the file does not "
        "say its shapes, as exports of capret_jax do: name a folder of a model with these shapes, "
        "--like=DIR."
    )


def at_image_size(state: Mapping[str, np.ndarray], config: ModelConfig) -> ModelConfig:
    """Returns the config at the image size of most relative position tables of the file."""
    rows = _most_common(state, "relative_position_bias_table", axis=0)
    return image_size_of_table(config, rows)


def image_size_of_table(config: ModelConfig, rows: int) -> ModelConfig:
    """Returns the config at the image size whose relative position tables have `rows` rows.

    Raises:
        InputError: there is no such image size.
    """
    grid = (round((rows - 3) ** 0.5) + 1) // 2
    if grid < 1 or relative_position_rows(grid) != rows:
        raise InputError(
            f"the relative position tables have {rows} rows, which is of no square image."
        )
    return dataclasses.replace(config, image_size=grid * PATCH_SIZE)


def size_name(config: ModelConfig) -> str:
    """Returns the row of `SIZES` with the shapes of a config, or "custom"."""
    for size, known in SIZES.items():
        if all(getattr(config, field) == getattr(known, field) for field in _SIZE_FIELDS):
            return size
    return "custom"


def with_optional_parts(
    state: Mapping[str, np.ndarray], config: ModelConfig, kind: str
) -> ModelConfig:
    """Returns the config with as many decoder layers and frame positions as the file has."""
    layers = _decoder_layers(state, config) if "decoder" in KINDS[kind].parts else 0
    frames = 0
    if FRAME_POSITIONS in state:
        shape = state[FRAME_POSITIONS].shape
        # (1, F, 1, D'); of any other shape the comparison of shapes tells what is needed.
        frames = shape[1] if len(shape) == 4 else 1
    return dataclasses.replace(config, decoder_layers=layers, frames=frames)


def detect_kind(state: Mapping[str, np.ndarray], config: ModelConfig) -> str:
    """Returns the kind whose names deviate the least from those of the file."""

    def mismatches(kind: str) -> int:
        full = with_optional_parts(state, config, kind)
        names = {tensor.name for tensor in reference_names(full, kind).values()}
        return len((names | ignored_names(full, kind).keys()) ^ state.keys())

    return min(KINDS, key=mismatches)


def _most_common(state: Mapping[str, np.ndarray], suffix: str, axis: int) -> int:
    lengths = [
        array.shape[axis]
        for name, array in state.items()
        if name.startswith("vision_encoder.blocks.") and name.endswith(suffix) and array.ndim
    ]
    if not lengths:
        hint = "; a BEiT-v2 file needs --bert=FILE beside it" if "cls_token" in state else ""
        raise InputError(
            f"the checkpoint is not X2-VLM's: it has no vision_encoder.blocks.*.{suffix}{hint}."
        )
    return collections.Counter(lengths).most_common(1)[0][0]


def _decoder_layers(state: Mapping[str, np.ndarray], config: ModelConfig) -> int:
    """Returns the number of the file's decoder layers that follow each other from 0 on."""
    pattern = r"text_decoder\.bert\.encoder\.layer\.(\d+)\..*"
    found = {int(match[1]) for name in state if (match := re.fullmatch(pattern, name))}
    # Without any, the names of all those of the published files are missing.
    return next(i for i in range(len(found) + 1) if i not in found) or config.fusion_layers
