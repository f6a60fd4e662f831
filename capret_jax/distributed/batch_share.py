"""Rows of a batch that each process provides, by the coordinates of its devices in the mesh."""

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import Mesh

from capret_jax.distributed.mesh import BATCH_AXES, batch_parts, batch_sharding
from capret_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class BatchShare:
    """The rows of every batch that a process provides.

    A batch has P equal parts, one for each coordinate along `BATCH_AXES`. Processes whose devices
    differ only along `tensor` compute the same examples, and so provide the same rows: they are a
    group. Groups are in the order of their first processes.

    Attributes:
        groups: parts of the batch of each of the G groups, P/G indices each.
        index: this process's group.
        is_first: True for the first process of its group, which alone does what is done once.
    """

    groups: tuple[tuple[int, ...], ...] = ((0,),)
    index: int = 0
    is_first: bool = True

    @classmethod
    def of_mesh(cls, mesh: Mesh, process: int | None = None) -> "BatchShare":
        """Returns the share of a process, by default of this one.

        Raises:
            InputError: the parts of two processes overlap without being the same.
        """
        process = jax.process_index() if process is None else process
        number = np.arange(batch_parts(mesh)).reshape([mesh.shape[axis] for axis in BATCH_AXES])
        parts: dict[int, set[int]] = {}
        for (*coordinates, _), device in np.ndenumerate(mesh.devices):
            parts.setdefault(device.process_index, set()).add(int(number[tuple(coordinates)]))
        by_process = {owner: tuple(sorted(parts[owner])) for owner in sorted(parts)}
        groups = tuple(dict.fromkeys(by_process.values()))
        if sum(map(len, groups)) != number.size or len(set(map(len, groups))) != 1:
            raise InputError(
                f"a mesh of {' x '.join(map(str, mesh.devices.shape))} devices cuts the "
                f"{len(parts)} processes unevenly: choose mesh.fsdp and mesh.tensor that divide "
                "the devices of a process, or are multiples of them."
            )
        own = by_process[process]
        first = next(owner for owner, theirs in by_process.items() if theirs == own)
        return cls(groups, groups.index(own), process == first)

    @classmethod
    def even(cls, index: int, count: int) -> "BatchShare":
        """Returns the `index`-th of `count` shares of one part each."""
        return cls(tuple((part,) for part in range(count)), index)

    @property
    def count(self) -> int:
        """Number G of groups, each of which provides B/G rows."""
        return len(self.groups)

    @property
    def parts(self) -> tuple[int, ...]:
        """The parts of the batch that this process provides."""
        return self.groups[self.index]

    def rows(self, batch_size: int) -> np.ndarray:
        """Returns (G, B/G) int64 positions in a batch of the rows that each group provides."""
        rows = np.arange(batch_size).reshape(self.count * len(self.parts), -1)
        return rows[np.array(self.groups)].reshape(self.count, -1)


# Of a mesh of thousands of devices not computed at every step.
@functools.lru_cache
def _own_share(mesh: Mesh) -> BatchShare:
    return BatchShare.of_mesh(mesh)


def to_global(mesh: Mesh, local_batch):
    """Makes the global arrays of a batch, with `mesh.batch_sharding`.

    Args:
        mesh: mesh from `make_mesh`.
        local_batch: a tree of NumPy arrays, the rows of this process's `BatchShare`.

    Raises:
        ValueError: the rows do not divide by the number of its parts.
    """
    sharding = batch_sharding(mesh)
    share = _own_share(mesh)

    def place(x):
        x = np.asarray(x)
        if len(x) % len(share.parts):
            raise ValueError(f"{len(x)} rows do not divide by {len(share.parts)} parts of a batch")
        size = len(x) // len(share.parts)

        def shard(index):
            part = share.parts.index((index[0].start or 0) // size) if size else 0
            return x[part * size : (part + 1) * size]

        global_shape = (size * batch_parts(mesh), *x.shape[1:])
        return jax.make_array_from_callback(global_shape, sharding, shard)

    return jax.tree.map(place, local_batch)
