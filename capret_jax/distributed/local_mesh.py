"""Computation on the devices of this process alone, as that on its own photographs needs."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import make_mesh


def local_model(mesh: Mesh, params: dict) -> tuple[Mesh, dict]:
    """Returns a mesh of this process's devices, with parameters for it.

    Every process has to call it.

    Args:
        mesh: mesh of all devices of all processes.
        params: a tree of arrays that are sharded over it.
    """
    if jax.process_count() == 1:
        return mesh, params
    whole = jax.device_put(multihost_utils.process_allgather(params, tiled=True))
    return make_mesh(MeshConfig(), jax.local_devices()), whole


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Repeats the last row of (n, ...) up to a number of rows."""
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])
