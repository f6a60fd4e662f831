"""The device mesh, and the sharding of parameters and batches over its axes."""

import math
import re
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from capret_jax.config import MeshConfig
from capret_jax.distributed.first_process import first_process_only
from capret_jax.errors import InputError

T = TypeVar("T")
DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
AXES = (DATA, FSDP, TENSOR)
# Axes that a batch is split over; devices along `tensor` compute the same examples.
BATCH_AXES = (DATA, FSDP)

# (regular expression, mesh axis of each axis of the parameter); the first expression that is found
# in a parameter's path applies. First matrices of a layer are split by column over `tensor`, last
# ones by row, so that a layer needs a single all-reduce (Megatron-LM, arXiv 1909.08053).
_RULES: tuple[tuple[str, tuple], ...] = (
    (r"arcface$", (AXES, None, None)),
    (r"(qkv|query|key|value|up)/kernel$", (FSDP, TENSOR)),
    (r"(attention|cross_attention)/out/kernel$|down/kernel$", (TENSOR, FSDP)),
    (r"embeddings/word/embedding$", (TENSOR, FSDP)),
)
# Smaller parameters are replicated: gathering them costs more time than their memory is worth.
_MIN_SHARDED_SIZE = 2**18


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of all devices of all processes.

    Args:
        config: sizes of the axes; `data` may be -1 for the number of devices over the others.
        devices: other devices to use, such as some of them, or those of a topology to plan for.

    Raises:
        InputError: the axes do not multiply to the number of devices, or do not fit the links
            between them.
    """
    count = len(devices) if devices else jax.device_count()
    shared = config.fsdp * config.tensor
    data = count // shared if config.data == -1 and shared > 0 else config.data
    if min(config.fsdp, config.tensor) < 1 or data * shared != count:
        raise InputError(
            f"mesh.data={config.data} x mesh.fsdp={config.fsdp} x mesh.tensor={config.tensor} does "
            f"not match {count} devices; set --config.mesh.data=-1 and an fsdp x tensor that "
            f"divides {count}."
        )
    shape, types = (data, config.fsdp, config.tensor), (AxisType.Auto,) * 3
    try:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    except NotImplementedError as error:  # such as 8 x 2 on a torus of 4 x 4
        raise InputError(
            f"a mesh of {' x '.join(map(str, shape))} does not fit the links between {count} "
            f"devices: choose another mesh.fsdp or mesh.tensor ({error})."
        ) from error


def per_device(
    function: Callable[..., jax.Array], inputs: list[tuple], output: tuple
) -> Callable[..., jax.Array]:
    """Applies a function to each device's part of its arguments, for kernels that XLA cannot split.

    Args:
        function: a function of arrays that returns an array.
        inputs: names of the axes of each argument: "batch", "heads", or None for an axis that is
            not split.
        output: names of the axes of the result.

    Returns:
        The sharded function; `function` itself outside of `jax.sharding.use_abstract_mesh`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    names = {"batch": BATCH_AXES, "heads": TENSOR, None: None}

    def spec(axes):
        return PartitionSpec(*(names[axis] for axis in axes))

    specs = tuple(map(spec, inputs))
    # JAX cannot check how the results of a kernel vary over the mesh.
    return jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=spec(output), check_vma=False
    )


def heads_per_device(heads: int) -> int:
    """Returns the attention heads per device of the current mesh, or 0 if they do not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape[TENSOR]
    return 0 if heads % parts else heads // parts


def divides_over_devices(rows: int) -> bool:
    """Returns True if this many rows can be split over the devices of the current mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or rows % batch_parts(mesh) == 0


def with_split_batch(x: jax.Array) -> jax.Array:
    """Keeps an array split over the devices by its first axis, and by no other axis of the batch.

    Without it XLA may split the widths of activations like those of parameters that are sharded,
    and sum activations over devices where it could gather the parameters.

    Args:
        x: (B, ...) states, B a multiple of the devices' parts; others stay as XLA splits them.

    Returns:
        `x` itself; outside of `jax.sharding.use_abstract_mesh` without any constraint.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or not divides_over_devices(len(x)):
        return x
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1) if mesh.shape[TENSOR] > 1 else []
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, *rest))


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: the first axis of each array is split over `BATCH_AXES`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(mesh: Mesh, params):
    """Returns a tree of shardings for parameters, or for a tree with the same paths and shapes.

    Parameters that `_RULES` match are split accordingly, along the axes whose size divides. Other
    large ones are split over `fsdp` along their longest axis that divides. The rest is replicated.

    Args:
        mesh: mesh from `make_mesh`.
        params: a tree of arrays or `jax.ShapeDtypeStruct`: parameters, or an optimizer state.
    """
    return jax.tree.map_with_path(
        lambda path, x: NamedSharding(mesh, _param_spec(path_name(path), x.shape, mesh)), params
    )


def path_name(path) -> str:
    """Formats a JAX key path as "model/vision/blocks/0/gamma_1"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def with_shardings(mesh: Mesh, abstract):
    """Returns a tree of `jax.ShapeDtypeStruct` with the shardings of `param_shardings` added."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        abstract,
        param_shardings(mesh, abstract),
    )


def _param_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    if math.prod(shape) < _MIN_SHARDED_SIZE:
        return PartitionSpec()
    for pattern, axes in _RULES:
        if re.search(pattern, path):
            return _fitting(axes[: len(shape)], shape, mesh)
    divisible = [axis for axis, size in enumerate(shape) if size % mesh.shape[FSDP] == 0]
    longest = max(divisible, key=lambda axis: shape[axis], default=None)
    return _fitting([FSDP if i == longest else None for i in range(len(shape))], shape, mesh)


def _fitting(axes, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns the axes of the mesh, None where one would not split its axis evenly."""

    def fit(axis, size):
        parts = math.prod(mesh.shape[name] for name in np.atleast_1d(axis)) if axis else 1
        return axis if parts > 1 and size % parts == 0 else None

    return PartitionSpec(*(fit(axis, size) for axis, size in zip(axes, shape, strict=True)))


def first_process_first(function: Callable[[], T]) -> T:
    """Calls a function on process 0 and then on the others, for files made once on a shared disk.

    Returns:
        The result of this process's call.
    """
    if jax.process_index():
        first_process_only(lambda: None)
        return function()
    result = function()
    first_process_only(lambda: None)
    return result
