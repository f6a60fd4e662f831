"""Attention with position bias as one TPU kernel that keeps the probabilities on the chip.

At 577 tokens, the probabilities dominate the cost: (H, N, N) values for each image and block are
written and read several times in each direction. One step of the grid is an image and a pair of
heads. Their rows fit the vector memory of the chip as a whole, so that blocks of keys and a running
maximum, which flash attention (arXiv 2205.14135) needs for longer sequences, are not needed. The
backward pass recomputes the probabilities.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl

from capret_jax.config.attention import TPU_LANES
from capret_jax.models.precision import dot_general

# Name of the output in rematerialisation policies: XLA does not see a kernel as a matrix product.
OUTPUT_NAME = "attention"


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def biased_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, interpret: bool = False
) -> jax.Array:
    """Computes softmax(query key^T / sqrt(d) + bias) value for every head.

    Args:
        query, key, value: (B, N, H, d), with any N, and H a multiple of 128 / d.
        bias: (H, N, N).
        interpret: True to run the kernel without a TPU, slowly.

    Returns:
        (B, N, H, d) in the dtype of `value`.
    """
    return _forward(query, key, value, bias, interpret)[0]


def _forward(query, key, value, bias, interpret):
    # Named here, because the backward pass needs this value and not a copy with a name; and before
    # the heads are split, in the layout that both kernels have.
    flat = checkpoint_name(_call_forward(query, key, value, bias, interpret), OUTPUT_NAME)
    return flat.reshape(value.shape), (query, key, value, bias, flat)


def _backward(interpret, saved, gradient):
    return _call_backward(saved, gradient, interpret)


biased_attention.defvjp(_forward, _backward)


class _Sizes:
    """Shapes of one call and of the blocks of its grid."""

    def __init__(self, query: jax.Array):
        self.batch, self.tokens, self.heads, self.width = query.shape
        self.heads_per_block = TPU_LANES // self.width
        self.grid = (self.heads // self.heads_per_block, self.batch)
        # Images are the inner axis, so that a block of the bias stays and its gradient accumulates.
        self.rows = pl.BlockSpec((None, self.tokens, TPU_LANES), lambda h, b: (b, 0, h))
        self.bias = pl.BlockSpec(
            (self.heads_per_block, self.tokens, self.tokens), lambda h, b: (h, 0, 0)
        )
        self.scale = self.width**-0.5

    def flat(self, x: jax.Array) -> jax.Array:
        """Reshapes (B, N, H, d) to (B, N, H*d)."""
        return x.reshape(self.batch, self.tokens, -1)

    def cost(self, products: int, arrays: int, bias: jax.Array, dtype) -> pl.CostEstimate:
        """Estimates the cost of (N, d) x (d, N) products and of accesses to (B, N, H*d) arrays."""
        pairs = self.batch * self.heads * self.tokens**2
        size = self.batch * self.tokens * self.heads * self.width * jnp.dtype(dtype).itemsize
        return pl.CostEstimate(
            flops=2 * products * pairs * self.width,
            transcendentals=pairs,
            bytes_accessed=arrays * size + bias.size * bias.dtype.itemsize,
        )


def _call_forward(query, key, value, bias, interpret):
    sizes = _Sizes(query)
    return pl.pallas_call(
        functools.partial(_forward_kernel, width=sizes.width, scale=sizes.scale),
        grid=sizes.grid,
        in_specs=[sizes.rows] * 3 + [sizes.bias],
        out_specs=sizes.rows,
        out_shape=jax.ShapeDtypeStruct(sizes.flat(value).shape, value.dtype),
        cost_estimate=sizes.cost(2, 4, bias, value.dtype),
        interpret=interpret,
        name="biased_attention",
    )(sizes.flat(query), sizes.flat(key), sizes.flat(value), bias)


def _call_backward(saved, gradient, interpret):
    query, key, value, bias, output = saved
    sizes = _Sizes(query)
    shape = jax.ShapeDtypeStruct(sizes.flat(value).shape, value.dtype)
    *gradients, bias_gradient = pl.pallas_call(
        functools.partial(_backward_kernel, width=sizes.width, scale=sizes.scale),
        grid=sizes.grid,
        in_specs=[sizes.rows] * 3 + [sizes.bias] + [sizes.rows] * 2,
        out_specs=[sizes.rows] * 3 + [sizes.bias],
        out_shape=[shape] * 3 + [jax.ShapeDtypeStruct(bias.shape, jnp.float32)],
        cost_estimate=sizes.cost(5, 8, bias, value.dtype),
        interpret=interpret,
        name="biased_attention_backward",
    )(*map(sizes.flat, (query, key, value)), bias, output, sizes.flat(gradient))
    gradients = [x.reshape(value.shape) for x in gradients]
    return (*gradients, bias_gradient.astype(bias.dtype))


def _dot(a, b, contract):
    return dot_general(a, b, (contract, ((), ())), preferred_element_type=jnp.float32)


_ROW_BY_ROW = ((1,), (1,))  # a b^T
_PLAIN = ((1,), (0,))  # a b
_COLUMN_BY_COLUMN = ((0,), (0,))  # a^T b


def _probabilities(query, key, bias, scale):
    logits = _dot(query, key, _ROW_BY_ROW) * scale + bias.astype(jnp.float32)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _heads(width):
    """Index and columns of each head in a block."""
    return [(i, slice(i * width, (i + 1) * width)) for i in range(TPU_LANES // width)]


def _forward_kernel(query, key, value, bias, output, *, width, scale):
    for i, columns in _heads(width):
        weights = _probabilities(query[:, columns], key[:, columns], bias[i], scale)
        v = value[:, columns]
        output[:, columns] = _dot(weights.astype(v.dtype), v, _PLAIN).astype(output.dtype)


def _backward_kernel(*refs, width, scale):
    query, key, value, bias, output, gradient, d_query, d_key, d_value, d_bias = refs

    @pl.when(pl.program_id(1) == 0)
    def _():
        d_bias[...] = jnp.zeros_like(d_bias)

    for i, columns in _heads(width):
        q, k, v, g = (ref[:, columns] for ref in (query, key, value, gradient))
        weights = _probabilities(q, k, bias[i], scale)
        # The Jacobian of softmax subtracts the weighted mean of each row, gradient . output.
        mean = (g.astype(jnp.float32) * output[:, columns].astype(jnp.float32)).sum(
            axis=1, keepdims=True
        )
        d_logits = weights * (_dot(g, v, _ROW_BY_ROW) - mean)
        d_bias[i] += d_logits
        weights, d_scaled = weights.astype(v.dtype), (d_logits * scale).astype(v.dtype)
        d_value[:, columns] = _dot(weights, g, _COLUMN_BY_COLUMN).astype(d_value.dtype)
        d_query[:, columns] = _dot(d_scaled, k, _PLAIN).astype(d_query.dtype)
        d_key[:, columns] = _dot(d_scaled, q, _COLUMN_BY_COLUMN).astype(d_key.dtype)
