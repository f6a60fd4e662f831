"""Converts between X2-VLM's state dicts and JAX parameters, and reports on every name."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from capret_jax.checkpoints.families import refuse_other_families
from capret_jax.checkpoints.kinds import COMPLETE, KINDS
from capret_jax.checkpoints.names import (
    FRAME_POSITIONS,
    IgnoredTensor,
    ReferenceTensor,
    ignored_names,
    reference_names,
)
from capret_jax.checkpoints.recognition import (
    at_image_size,
    detect_kind,
    published_config,
    size_name,
    with_optional_parts,
    without_module_prefix,
)
from capret_jax.checkpoints.report import Report
from capret_jax.checkpoints.tensors import (
    convert_tensors,
    dtype_notes,
    parameter_shapes,
    paths_by_name,
    raise_if_any,
)
from capret_jax.config import ModelConfig
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import INITIAL_TEMPERATURE, init_params

AUTO = "auto"


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


def from_reference(
    state: Mapping[str, np.ndarray], kind: str = AUTO, config: ModelConfig | None = None
) -> Converted:
    """Converts one of X2-VLM's published files; parts that it lacks are initialised fresh.

    Arguments and errors are those of `match_reference`.
    """
    return fill_missing(match_reference(state, kind, config))


def match_reference(
    state: Mapping[str, np.ndarray], kind: str = AUTO, config: ModelConfig | None = None
) -> Converted:
    """Converts the parameters that a published file holds, and accounts for every name.

    Buffers and one of two tied tensors may be absent, and all names may start with "module.".

    Args:
        state: name -> array, from `read_state_dict`.
        kind: a key of `KINDS`, or "auto": the kind whose names fit best.
        config: shapes of the model; None for those of the row of `SIZES` with this vision encoder.
            The image size, and the numbers of decoder layers and frames, are those of the file.

    Raises:
        InputError: a name is missing or unknown, or has another shape or dtype; the message lists
            them. Also if the file has no known size, or belongs to another family of models.
    """
    state, notes = without_module_prefix(state)
    refuse_other_families(state)
    config = at_image_size(state, config or published_config(state))
    size = size_name(config)
    kind = detect_kind(state, config) if kind == AUTO else kind
    config = with_optional_parts(state, config, kind)
    names, ignored, absent = _names_in_file(state, config, kind)
    arrays, problems = convert_tensors(state, names, parameter_shapes(config))
    problems += _check_ignored(state, ignored)
    known = {tensor.name for tensor in names.values()} | ignored.keys()
    problems += [f"unexpected {name} {state[name].shape}" for name in state if name not in known]
    if "frame_positions" in KINDS[kind].parts and not config.frames:
        problems.append(f"missing {FRAME_POSITIONS}")
    raise_if_any(problems, f"the checkpoint is no {size} {kind} checkpoint")
    if "temp" in absent:
        arrays["temperature"] = np.array(INITIAL_TEMPERATURE, np.float32)

    report = Report(kind, size, config.image_size, notes=notes, absent=absent)
    report.used = paths_by_name(names)
    report.ignored = {name: tensor.reason for name, tensor in ignored.items()}
    report.notes += _part_notes(config, kind)
    report.notes += dtype_notes(state[name] for name in report.used)
    retained = _retained_tensors(state, ignored, report)
    return Converted(unflatten_dict(arrays, sep="/"), config, report, retained)


def fill_missing(converted: Converted) -> Converted:
    """Adds deterministic initial values of the parameters that the file did not hold."""
    config, present = converted.config, flatten_dict(converted.params, sep="/")
    names = {path: tensor.name for path, tensor in reference_names(config).items()}
    # Parts that no published file has go by their paths.
    names |= {path: path for path in parameter_shapes(config) if path not in names}
    converted.report.missing = {name: path for path, name in names.items() if path not in present}
    paths = frozenset(converted.report.missing.values())
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
    arrays, retained = flatten_dict(params, sep="/"), retained or {}
    state: dict[str, np.ndarray] = {}
    lacking = [part for part in KINDS[kind].parts if part not in params]
    if lacking == ["frame_positions"] and FRAME_POSITIONS in retained:
        # Older versions retained the positions of frames, and did not load them.
        state[FRAME_POSITIONS] = retained[FRAME_POSITIONS]
    elif lacking:
        raise InputError(f"a {kind} checkpoint has a {lacking[0]}, which this model does not have.")
    for path, (name, layout) in reference_names(config, kind).items():
        state[name] = layout.to_torch(np.asarray(arrays[path]))
    for name, ignored in ignored_names(config, kind).items():
        if name in retained and _shapes_agree(retained[name].shape, ignored.shape):
            state[name] = retained[name]
        elif ignored.value:
            state[name] = ignored.value(state)
    return state


def _part_notes(config: ModelConfig, kind: str) -> list[str]:
    """Returns one line for each part that most files of the kind have in another depth."""
    notes = []
    if config.decoder_layers not in (0, config.fusion_layers):
        notes.append(
            f"the answer decoder has {config.decoder_layers} layers; those of the published files "
            f"have {config.fusion_layers}, as many as the fusion encoder"
        )
    if config.frames and "frame_positions" in KINDS[kind].optional:
        notes.append(
            f"{FRAME_POSITIONS} holds the positions of {config.frames} frames of a video, which "
            "encode_video adds and encode_image does not"
        )
    return notes


def _names_in_file(
    state: Mapping[str, np.ndarray], config: ModelConfig, kind: str
) -> tuple[dict[str, ReferenceTensor], dict[str, IgnoredTensor], dict[str, str]]:
    """Adapts the names of a whole file of this kind to one that lacks some without loss.

    Returns:
        The names of parameters and ignored tensors as they are in this file, and name -> reason of
        those that it lacks: buffers, tied tensors, and a temperature that was no parameter.
    """
    names, ignored = reference_names(config, kind), ignored_names(config, kind)
    absent = {name: tensor.reason for name, tensor in ignored.items() if name not in state}
    copies = {
        tensor.tied_to: name
        for name, tensor in ignored.items()
        if name in state and tensor.tied_to and tensor.tied_to not in state
    }
    absent |= {name: f"taken from {copy}, which is tied to it" for name, copy in copies.items()}
    if "temp" in KINDS[kind].constants and "temp" not in state:
        absent["temp"] = f"a constant of the training (fix_temp): {INITIAL_TEMPERATURE} is used"
    names = {
        path: tensor._replace(name=copies.get(tensor.name, tensor.name))
        for path, tensor in names.items()
        if tensor.name in copies or tensor.name not in absent
    }
    used = copies.values() | absent.keys()
    return names, {name: ignored[name] for name in ignored if name not in used}, absent


def _check_ignored(
    state: Mapping[str, np.ndarray], ignored: Mapping[str, IgnoredTensor]
) -> list[str]:
    problems = []
    for name, tensor in ignored.items():
        if not _shapes_agree(state[name].shape, tensor.shape):
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
