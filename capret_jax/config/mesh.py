"""The shape of the device mesh."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; `data=-1` takes all that the others leave.

    Attributes:
        data: copies of the parameters, each with its own examples.
        fsdp: devices that share parameters and optimizer state, each with its own examples.
        tensor: devices that share the matrices of every layer and its examples.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
