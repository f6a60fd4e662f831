"""Output heads: matching, boxes and tokens."""

import jax
import jax.numpy as jnp
from flax import nnx

from capret_jax.models.bert import EPSILON
from capret_jax.models.layers import dense, gelu, layer_norm
from capret_jax.models.precision import matmul

_HEAD_EPSILON = 1e-5


class MlpHead(nnx.Module):
    """Linear(D, 2D), LayerNorm, GELU, Linear(2D, outputs): the structure of ITM and box head."""

    def __init__(self, width: int, outputs: int):
        self.up = dense(width, 2 * width)
        self.norm = layer_norm(2 * width, _HEAD_EPSILON)
        self.down = dense(2 * width, outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes (..., outputs) from (..., D)."""
        return self.down(gelu(self.norm(self.up(x))))


class TokenHead(nnx.Module):
    """BERT's masked language model head; its output matrix is the token embedding table."""

    def __init__(self, width: int, tokens: int):
        self.dense = dense(width, width)
        self.norm = layer_norm(width, EPSILON)
        self.bias = nnx.Param(jnp.zeros((tokens,)))

    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
        """Computes (..., V) logits from x (..., D) and the table (V, D)."""
        return matmul(self.norm(gelu(self.dense(x))), table.T) + self.bias[...]


def normalize(x: jax.Array) -> jax.Array:
    """Scales the last axis to unit L2 norm (norms under 1e-12 count as 1e-12)."""
    # rsqrt of a maximum, because the gradient of a norm at 0 is NaN.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
