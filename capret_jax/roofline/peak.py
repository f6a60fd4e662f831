"""Measured peak rate of matrix products on this machine, the reference for utilisation."""

import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_ROUNDS = 5


def matmul_peak(mesh: Mesh, dtype: str = "float32", size: int | None = None) -> float:
    """Measures square matrix products on all devices at once; returns the rate of the fastest.

    Args:
        mesh: devices to measure together, since those of a CPU share its cores.
        dtype: dtype of the factors.
        size: rows of each factor; None for 2,048 on a CPU and 8,192 elsewhere.

    Returns:
        FLOP/s of all devices together.
    """
    size = size or (2048 if mesh.devices.flat[0].platform == "cpu" else 8192)
    spec = PartitionSpec(mesh.axis_names)
    sharding = NamedSharding(mesh, spec)
    shape = (mesh.size * size, size)
    factors = jax.jit(lambda: jnp.ones(shape, dtype), out_shardings=sharding)()
    product = jax.jit(
        jax.shard_map(lambda factor: factor @ factor, mesh=mesh, in_specs=spec, out_specs=spec)
    )
    jax.block_until_ready(product(factors))
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(product(factors))
        seconds.append(time.perf_counter() - start)
    return 2 * mesh.size * size**3 / min(seconds)
