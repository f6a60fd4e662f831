"""Settings of the device mesh."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis of the mesh; `data=-1` takes all remaining devices.

    Attributes:
        data: data parallelism: copies of the parameters, each with other examples.
        fsdp: fully sharded data parallelism: parameters and optimizer state are sharded, each
            device has other examples.
        tensor: tensor parallelism: the matrices of every layer are sharded, all devices have the
            same examples.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
