"""Between X2-VLM's state dicts and our parameters, with nothing taken or left unsaid."""

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
    Ignored,
    Reference,
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


def parts(paths: Iterable[str]) -> list[str]:
    """The parts of the model ("itm_head") that parameters belong to."""
    return sorted({path.split("/")[0] for path in paths})


@dataclasses.dataclass
class Report:
    """What became of every name.

    Attributes:
        kind: of the file, a key of `KINDS`, or "beit_bert".
        size: the row of `SIZES` that its shapes are, where there is one.
        image_size: pixels, after conversion.
        used: name in the file -> the parameters of ours that it fills.
        ignored: name in the file -> why it is not a parameter of ours.
        missing: name that a complete file would have -> the parameter of ours, initialised fresh.
        notes: what else a reader should know.
    """

    kind: str
    size: str
    image_size: int
    used: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    ignored: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def summary(self) -> str:
        """A short table for people."""
        reasons = collections.Counter(self.ignored.values())
        ignored = "; ".join(f"{count} {why}" for why, count in reasons.items())
        fresh_parts = ", ".join(parts(self.missing.values()))
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
    """A model, and what is needed to send it home.

    Attributes:
        params: nested dict as `init_params` makes it, float32; NumPy views where possible. What
            the file does not hold is not there before `fill_missing`.
        config: of the model, at the file's image size.
        report: what became of every name.
        carried: ignored tensors that nothing else tells, by their names in the file.
    """

    params: dict
    config: ModelConfig
    report: Report
    carried: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def from_reference(state: Mapping[str, np.ndarray], kind: str = AUTO) -> Converted:
    """Our model from one of X2-VLM's published files; heads that it lacks are fresh.

    Arguments and errors are those of `match_reference`.
    """
    return fill_missing(match_reference(state, kind))


def match_reference(state: Mapping[str, np.ndarray], kind: str = AUTO) -> Converted:
    """What a published file holds of our model, every name accounted for.

    Args:
        state: name -> array, as `read_state_dict` returns it.
        kind: a key of `KINDS`, or "auto": the kind whose names fit best.

    Raises:
        InputError: a name is missing or unknown, or a shape or dtype is another; the message names
            each. Also when the file is of no known size.
    """
    size, config = _detect_size(state)
    kind = _detect_kind(state, config) if kind == AUTO else kind
    config = _with_decoder(config, kind)
    names, ignored = reference_names(config, kind), ignored_names(config, kind)
    arrays, problems = take(state, names, parameter_shapes(config))
    problems += _check_ignored(state, ignored)
    known = {reference.name for reference in names.values()} | ignored.keys()
    problems += [f"unexpected {name} {state[name].shape}" for name in state if name not in known]
    refuse(problems, f"the checkpoint is no {size} {kind} checkpoint")

    report = Report(kind, size, config.image_size)
    report.used = users(names)
    report.ignored = {name: entry.why for name, entry in ignored.items()}
    report.notes += dtype_notes(state[name] for name in report.used)
    carried = _carried(state, ignored, report)
    return Converted(unflatten_dict(arrays, sep="/"), config, report, carried)


def fill_missing(converted: Converted) -> Converted:
    """Adds what a complete model has beyond the file: initial values, always the same ones."""
    config, present = converted.config, flatten_dict(converted.params, sep="/")
    names = reference_names(config)
    paths = frozenset(path for path in names if path not in present)
    converted.report.missing = {names[path].name: path for path in names if path in paths}
    if paths:
        make = jax.jit(lambda key: init_params(config, key, paths))
        present |= flatten_dict(jax.device_get(make(jax.random.key(0))), sep="/")
    return dataclasses.replace(converted, params=unflatten_dict(present, sep="/"))


def to_reference(
    params: dict,
    config: ModelConfig,
    kind: str = COMPLETE,
    carried: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The state dict of a published file of this kind; its buffers are computed anew.

    Args:
        params: our parameters; parts that the kind does not have stay behind.
        config: their shapes.
        kind: a key of `KINDS`.
        carried: from `Converted`. Extras of the kind that are not among them are left out.

    Raises:
        InputError: the model lacks a part that the kind has.
    """
    lacking = [part for part in KINDS[kind].parts if part not in params]
    if lacking:
        raise InputError(f"a {kind} checkpoint has a {lacking[0]}, which this model does not have.")
    arrays, carried = flatten_dict(params, sep="/"), carried or {}
    state: dict[str, np.ndarray] = {}
    for path, (name, layout) in reference_names(config, kind).items():
        state[name] = layout.to_theirs(np.asarray(arrays[path]))
    for name, ignored in ignored_names(config, kind).items():
        if name in carried and _fits(carried[name].shape, ignored.shape):
            state[name] = carried[name]
        elif ignored.value:
            state[name] = ignored.value(state)
    return state


def _detect_size(state: Mapping[str, np.ndarray]) -> tuple[str, ModelConfig]:
    """By majority, so that one wrong tensor is named as the culprit, and not all others."""
    width = _most_common(state, "norm1.weight", axis=0)
    rows = _most_common(state, "relative_position_bias_table", axis=0)
    for size, config in SIZES.items():
        if width == config.vision_width:
            return size, image_size_of_table(config, rows)
    known = ", ".join(f"{size} {config.vision_width}" for size, config in SIZES.items())
    raise InputError(
        f"the vision encoder's width {width} is of no known size ({known}); a new size is a row in "
        "capret_jax/models/config.py."
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
    """The config at the image size whose relative position tables have so many rows.

    Raises:
        InputError: there is none.
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
    def strangers(kind: str) -> int:
        full = _with_decoder(config, kind)
        names = {reference.name for reference in reference_names(full, kind).values()}
        return len((names | ignored_names(full, kind).keys()) ^ state.keys())

    return min(KINDS, key=strangers)


@functools.lru_cache
def parameter_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Path of each parameter -> its shape."""
    _, abstract = abstract_model(config)
    shapes = {path: leaf.shape for path, leaf in flatten_dict(abstract, sep="/").items()}
    return types.MappingProxyType(shapes)


def take(
    state: Mapping[str, np.ndarray],
    names: Mapping[str, Reference],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The named parameters in our layout, float32, and what is wrong with the others."""
    arrays, problems = {}, []
    for path, (name, layout) in names.items():
        # Costs no memory: only its shape is wanted.
        wanted = layout.to_theirs(np.broadcast_to(np.float32(0), shapes[path])).shape
        array = state.get(name)
        if array is None:
            problems.append(f"missing {name}")
        elif array.shape != wanted:
            problems.append(f"{name} has shape {array.shape} where {wanted} is needed")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            problems.append(f"{name} has dtype {array.dtype} where floats are needed")
        else:
            arrays[path] = layout.to_ours(array).astype(np.float32, copy=False)
    return arrays, problems


def refuse(problems: list[str], message: str) -> None:
    """
    Raises:
        InputError: there are problems; the message holds the first of them.
    """
    if problems:
        shown = "; ".join(problems[:_SHOWN_PROBLEMS])
        more = len(problems) - _SHOWN_PROBLEMS
        raise InputError(f"{message}: {shown}{f'; and {more} more' if more > 0 else ''}.")


def users(names: Mapping[str, Reference]) -> dict[str, list[str]]:
    """Name in the file -> the paths of ours that it fills."""
    used: dict[str, list[str]] = {}
    for path, reference in names.items():
        used.setdefault(reference.name, []).append(path)
    return used


def dtype_notes(arrays: Iterable[np.ndarray]) -> list[str]:
    """One line for each dtype other than float32."""
    dtypes = collections.Counter(array.dtype.name for array in arrays)
    exactly = {"float16": "exactly", "bfloat16": "exactly"}
    return [
        f"{count} tensors of {dtype} were converted to float32 {exactly.get(dtype, 'by rounding')}"
        for dtype, count in dtypes.items()
        if dtype != "float32"
    ]


def _check_ignored(state: Mapping[str, np.ndarray], ignored: Mapping[str, Ignored]) -> list[str]:
    problems = []
    for name, entry in ignored.items():
        if name not in state:
            problems.append(f"missing {name} ({entry.why})")
        elif not _fits(state[name].shape, entry.shape):
            wanted = str(entry.shape).replace("None", "any")
            problems.append(f"{name} has shape {state[name].shape} where {wanted} is needed")
    return problems


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        b in (a, None) for a, b in zip(shape, wanted, strict=True)
    )


def _carried(
    state: Mapping[str, np.ndarray], ignored: Mapping[str, Ignored], report: Report
) -> dict[str, np.ndarray]:
    """What would be lost; a buffer or tie that is not what it should be gets a note."""
    carried = {}
    for name, entry in ignored.items():
        if entry.value and np.array_equal(entry.value(state), state[name]):
            continue
        carried[name] = state[name]
        if entry.value:
            report.notes.append(
                f"{name} is not as expected ({entry.why}): its values had no effect"
            )
    return carried
