"""Matrix products whose precision follows from their dtype, on every platform.

By default GPUs round float32 factors to TF32, with 10 bits, and TPUs to bfloat16, with 7. Here
products of float32 are exact to float32; whoever wants less computes in bfloat16.
"""

import jax
import jax.numpy as jnp
from jax.lax import Precision


def dtype_precision(dtype: jnp.dtype) -> Precision:
    """Returns the precision of products of factors of a dtype."""
    return Precision.HIGHEST if dtype == jnp.float32 else Precision.DEFAULT


def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes `x @ y`."""
    return jnp.matmul(x, y, precision=dtype_precision(x.dtype))


def einsum(equation: str, x: jax.Array, y: jax.Array, **options) -> jax.Array:
    """Computes `jnp.einsum` of two arrays."""
    return jnp.einsum(equation, x, y, precision=dtype_precision(x.dtype), **options)


def dot_general(x: jax.Array, y: jax.Array, dimension_numbers, **options) -> jax.Array:
    """Computes `jax.lax.dot_general`, for layers of Flax that take it as an argument."""
    options["precision"] = dtype_precision(x.dtype)
    return jax.lax.dot_general(x, y, dimension_numbers, **options)
