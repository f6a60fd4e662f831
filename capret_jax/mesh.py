"""The device mesh, and the one place that says what is sharded over which of its axes."""

import dataclasses
import math
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from capret_jax.errors import InputError

T = TypeVar("T")
DATA, FSDP = "data", "fsdp"
# A batch is split over every device; parameters over `fsdp` alone.
BATCH_AXES = (DATA, FSDP)
# Smaller parameters stay whole on every device: gathering them costs more than they weigh.
_MIN_SHARDED_SIZE = 2**18


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; `data=-1` takes all that `fsdp` leaves."""

    data: int = -1
    fsdp: int = 1


def make_mesh(config: MeshConfig) -> Mesh:
    """A mesh over all devices of all processes.

    Raises:
        InputError: the axes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    data = devices // config.fsdp if config.data == -1 else config.data
    if config.fsdp < 1 or data * config.fsdp != devices:
        raise InputError(
            f"mesh.data={config.data} x mesh.fsdp={config.fsdp} does not match {devices} devices; "
            f"set --config.mesh.data=-1 and an fsdp that divides {devices}."
        )
    return jax.make_mesh((data, config.fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis of every array of a batch is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(mesh: Mesh, params):
    """A tree of shardings for parameters, or for anything shaped like them.

    Large arrays are split over `fsdp` along their longest axis that divides evenly; the rest is
    replicated.

    Args:
        mesh: from `make_mesh`.
        params: a tree of arrays or `jax.ShapeDtypeStruct`.
    """
    return jax.tree.map(
        lambda x: NamedSharding(mesh, _param_spec(x.shape, mesh.shape[FSDP])), params
    )


def place(mesh: Mesh, abstract):
    """The same `jax.ShapeDtypeStruct`s with the shardings of `param_shardings`."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        abstract,
        param_shardings(mesh, abstract),
    )


def _param_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or math.prod(shape) < _MIN_SHARDED_SIZE or not divisible:
        return PartitionSpec()
    longest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*(FSDP if axis == longest else None for axis in range(len(shape))))


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
