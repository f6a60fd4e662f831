"""Converts between X2-VLM's state dicts and JAX parameters, and reports on every name."""

import collections
import dataclasses
import functools
import types
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from capret_jax.checkpoints.names import (
    COMPLETE,
    KINDS,
    IgnoredTensor,
    ReferenceTensor,
    ignored_names,
    reference_names,
)
from capret_jax.config import SIZES, ModelConfig
from capret_jax.config.model import PATCH_SIZE
from capret_jax.errors import InputError
from capret_jax.models.beit import relative_position_rows
from capret_jax.models.x2vlm import abstract_model, init_params

AUTO = "auto"
_SHOWN_PROBLEMS = 8


def model_parts(paths: Iterable[str]) -> list[str]:
    """Returns the names of the parts of the model ("itm_head") that parameters belong to."""
    return sorted({path.split("/")[0] for path in paths})


@dataclasses.dataclass
class Report:
    """Use of every name in a conversion; the content of report.json.

    Attributes:
        kind: kind of the file: a key of `KINDS`, or "beit_bert".
        size: row of `SIZES` with these shapes, or "custom".
        image_size: pixels, after conversion.
        used: name in the file -> paths of the parameters that it fills.
        ignored: name in the file -> reason why it is not a parameter.
        missing: name that a complete file would have -> path of the parameter, initialised fresh.
        notes: other facts, one line each.
    """

    kind: str
    size: str
    image_size: int
    used: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    ignored: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def summary(self) -> str:
        """Returns a short table for printing."""
        reasons = collections.Counter(self.ignored.values())
        ignored = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
        fresh_parts = ", ".join(model_parts(self.missing.values()))
        rows = [
            ("checkpoint", f"{self.kind}, {self.size}, {self.image_size} px"),
            ("used", f"{len(self.used)} tensors"),
            ("ignored", f"{len(self.ignored)} tensors: {ignored}" if ignored else "nothing"),
            (
                "missing",
                f"{len(self.missing)} tensors, initialised fresh: {fresh_parts}"
                if fresh_parts
                else "nothing",
            ),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(f"{name:12}{text}" for name, text in rows)


@dataclasses.dataclass
class Converted:
    """A converted model, with the tensors that an export to PyTorch needs besides it.

    Attributes:
        params: float32 parameters, a nested dict with the structure of `init_params`; NumPy views
            where possible. Parameters that the file does not hold are added by `fill_missing`.
        config: shapes of the model, at the file's image size.
        report: use of every name.
        retained: name -> ignored tensor that cannot be computed at export.
    """

    params: dict
    config: ModelConfig
    report: Report
    retained: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def from_reference(state: Mapping[str, np.ndarray], kind: str = AUTO) -> Converted:
    """Converts one of X2-VLM's published files; parts that it lacks are initialised fresh.

    Arguments and errors are those of `match_reference`.
    """
    return fill_missing(match_reference(state, kind))


def match_reference(state: Mapping[str, np.ndarray], kind: str = AUTO) -> Converted:
    """Converts the parameters that a published file holds, and accounts for every name.

    Args:
        state: name -> array, from `read_state_dict`.
        kind: a key of `KINDS`, or "auto": the kind whose names fit best.

    Raises:
        InputError: a name is missing or unknown, or has another shape or dtype; the message lists
            them. Also if the file has no known size.
    """
    size, config = _detect_size(state)
    kind = _detect_kind(state, config) if kind == AUTO else kind
    config = _with_decoder(config, kind)
    names, ignored = reference_names(config, kind), ignored_names(config, kind)
    arrays, problems = convert_tensors(state, names, parameter_shapes(config))
    problems += _check_ignored(state, ignored)
    known = {tensor.name for tensor in names.values()} | ignored.keys()
    problems += [f"unexpected {name} {state[name].shape}" for name in state if name not in known]
    raise_if_any(problems, f"the checkpoint is no {size} {kind} checkpoint")

    report = Report(kind, size, config.image_size)
    report.used = paths_by_name(names)
    report.ignored = {name: tensor.reason for name, tensor in ignored.items()}
    report.notes += dtype_notes(state[name] for name in report.used)
    retained = _retained_tensors(state, ignored, report)
    return Converted(unflatten_dict(arrays, sep="/"), config, report, retained)


def fill_missing(converted: Converted) -> Converted:
    """Adds deterministic initial values of the parameters that the file did not hold."""
    config, present = converted.config, flatten_dict(converted.params, sep="/")
    names = reference_names(config)
    paths = frozenset(path for path in names if path not in present)
    converted.report.missing = {names[path].name: path for path in names if path in paths}
    if paths:
        initialize = jax.jit(lambda key: init_params(config, key, paths))
        present |= flatten_dict(jax.device_get(initialize(jax.random.key(0))), sep="/")
    return dataclasses.replace(converted, params=unflatten_dict(present, sep="/"))


def to_reference(
    params: dict,
    config: ModelConfig,
    kind: str = COMPLETE,
    retained: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Returns the state dict of a published file of this kind, with buffers computed anew.

    Args:
        params: parameters of the model; parts that the kind does not have are left out.
        config: shapes of the parameters.
        kind: a key of `KINDS`.
        retained: `Converted.retained`. Extras of the kind that it lacks are left out.

    Raises:
        InputError: the model lacks a part of this kind.
    """
    lacking = [part for part in KINDS[kind].parts if part not in params]
    if lacking:
        raise InputError(f"a {kind} checkpoint has a {lacking[0]}, which this model does not have.")
    arrays, retained = flatten_dict(params, sep="/"), retained or {}
    state: dict[str, np.ndarray] = {}
    for path, (name, layout) in reference_names(config, kind).items():
        state[name] = layout.to_torch(np.asarray(arrays[path]))
    for name, ignored in ignored_names(config, kind).items():
        if name in retained and _shapes_agree(retained[name].shape, ignored.shape):
            state[name] = retained[name]
        elif ignored.value:
            state[name] = ignored.value(state)
    return state


def _detect_size(state: Mapping[str, np.ndarray]) -> tuple[str, ModelConfig]:
    """Detects the size that most tensors have, so that errors name only the deviating tensors."""
    width = _most_common(state, "norm1.weight", axis=0)
    rows = _most_common(state, "relative_position_bias_table", axis=0)
    for size, config in SIZES.items():
        if width == config.vision_width:
            return size, image_size_of_table(config, rows)
    known = ", ".join(f"{size} {config.vision_width}" for size, config in SIZES.items())
    raise InputError(
        f"the vision encoder's width {width} is of no known size ({known}); a new size is a row in "
        "capret_jax/config/model.py."
    )


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


def _with_decoder(config: ModelConfig, kind: str) -> ModelConfig:
    # X2-VLM's VQA decoder is as deep as its fusion encoder, in every size.
    layers = config.fusion_layers if "decoder" in KINDS[kind].parts else 0
    return dataclasses.replace(config, decoder_layers=layers)


def _detect_kind(state: Mapping[str, np.ndarray], config: ModelConfig) -> str:
    def mismatches(kind: str) -> int:
        full = _with_decoder(config, kind)
        names = {tensor.name for tensor in reference_names(full, kind).values()}
        return len((names | ignored_names(full, kind).keys()) ^ state.keys())

    return min(KINDS, key=mismatches)


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


def _check_ignored(
    state: Mapping[str, np.ndarray], ignored: Mapping[str, IgnoredTensor]
) -> list[str]:
    problems = []
    for name, tensor in ignored.items():
        if name not in state:
            problems.append(f"missing {name} ({tensor.reason})")
        elif not _shapes_agree(state[name].shape, tensor.shape):
            expected = str(tensor.shape).replace("None", "any")
            problems.append(f"{name} has shape {state[name].shape} where {expected} is needed")
    return problems


def _shapes_agree(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        b in (a, None) for a, b in zip(shape, expected, strict=True)
    )


def _retained_tensors(
    state: Mapping[str, np.ndarray], ignored: Mapping[str, IgnoredTensor], report: Report
) -> dict[str, np.ndarray]:
    """Returns ignored tensors that cannot be computed; notes unexpected values."""
    retained = {}
    for name, tensor in ignored.items():
        if tensor.value and np.array_equal(tensor.value(state), state[name]):
            continue
        retained[name] = state[name]
        if tensor.value:
            report.notes.append(
                f"{name} is not as expected ({tensor.reason}): its values had no effect"
            )
    return retained
