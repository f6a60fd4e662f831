"""The device mesh, and the one place that says what is sharded over which of its axes."""

import math
import re
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from capret_jax.config import MeshConfig
from capret_jax.errors import InputError

T = TypeVar("T")
DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
AXES = (DATA, FSDP, TENSOR)
# A batch is split over these; devices along `tensor` work on the same examples.
BATCH_AXES = (DATA, FSDP)

# Path -> axis of the mesh for each axis of the parameter; the first pattern found in a path
# decides. Matrices that a layer begins with are split by column over `tensor`, those that it ends
# with by row, so that one sum joins the halves (Megatron-LM, arXiv 1909.08053).
_RULES: tuple[tuple[str, tuple], ...] = (
    (r"arcface$", (AXES, None, None)),
    (r"(qkv|query|key|value|up)/kernel$", (FSDP, TENSOR)),
    (r"(attention|cross_attention)/out/kernel$|down/kernel$", (TENSOR, FSDP)),
    (r"embeddings/word/embedding$", (TENSOR, FSDP)),
)
# Smaller parameters stay whole on every device: gathering them costs more than they weigh.
_MIN_SHARDED_SIZE = 2**18


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of all processes.

    Args:
        config: its shape.
        devices: others than the machine's own, such as those of a topology to plan for.

    Raises:
        InputError: the axes do not multiply to the number of devices.
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
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)


def per_device(
    function: Callable[..., jax.Array], inputs: list[tuple], output: tuple
) -> Callable[..., jax.Array]:
    """`function` on each device's part of its arguments, for kernels that XLA cannot split.

    Args:
        function: arrays -> array.
        inputs: for each argument the names of its axes, "batch", "heads" or None for whole ones.
        output: the same of the result.

    Returns:
        The function itself outside of `jax.sharding.use_abstract_mesh`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    names = {"batch": BATCH_AXES, "heads": TENSOR, None: None}

    def spec(axes):
        return PartitionSpec(*(names[axis] for axis in axes))

    specs = tuple(map(spec, inputs))
    # Whether a kernel's results vary over the mesh cannot be checked.
    return jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=spec(output), check_vma=False
    )


def heads_per_device(heads: int) -> int:
    """Attention heads that one device computes under the current mesh; 0 if they do not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape[TENSOR]
    return 0 if heads % parts else heads // parts


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis of every array of a batch is split over `BATCH_AXES`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(mesh: Mesh, params):
    """A tree of shardings for parameters, or for anything shaped like them.

    What `_RULES` name is split as they say, as far as its sizes divide; other large arrays over
    `fsdp` along their longest axis that divides; the rest is replicated.

    Args:
        mesh: from `make_mesh`.
        params: a tree of arrays or `jax.ShapeDtypeStruct`, an optimiser state for instance.
    """
    return jax.tree.map_with_path(
        lambda path, x: NamedSharding(mesh, _param_spec(path_name(path), x.shape, mesh)), params
    )


def path_name(path) -> str:
    """A JAX key path as "model/vision/blocks/0/gamma_1"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def place(mesh: Mesh, abstract):
    """The same `jax.ShapeDtypeStruct`s with the shardings of `param_shardings`."""
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
    """The axes that split something, and split it evenly."""

    def fit(axis, size):
        parts = math.prod(mesh.shape[name] for name in np.atleast_1d(axis)) if axis else 1
        return axis if parts > 1 and size % parts == 0 else None

    return PartitionSpec(*(fit(axis, size) for axis, size in zip(axes, shape, strict=True)))


def first_process_first(work: Callable[[], T]) -> T:
    """Calls `work` on process 0 and then on the others, for what is made once on a shared disk."""
    if jax.process_index():
        multihost_utils.sync_global_devices("first_process_first")
        return work()
    result = work()
    multihost_utils.sync_global_devices("first_process_first")
    return result


def to_global(mesh: Mesh, local_batch):
    """This process's NumPy slice of a batch -> global arrays sharded as `batch_sharding` says."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), local_batch
    )
