"""Attention with position bias and masks by cuDNN's fused kernel, on NVIDIA GPUs.

The kernel keeps the attention weights on the chip, in both directions, and computes the gradient of
the bias. This module prepares what it takes: one additive bias, and even lengths.
"""

from typing import Literal

import jax
import jax.numpy as jnp

# Primitives of the kernel in `jax.nn`, by which rematerialisation and FLOP counts know it. A name
# on its output would not help: the backward pass needs the primitive's own results.
CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"
CUDNN_BACKWARD = "dot_product_attention_bwd_wrapper"
# Added to the logits of padding keys. Their weight is 0 even beside keys that `mask` hides, whose
# logits get -10,000: a row that hides every key keeps its weights, as on other platforms.
_PADDED_LOGIT = -30000.0


def fused_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    masked: jax.Array | None,
    *,
    library: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Computes softmax(query key^T / sqrt(d) + bias + masked) value for every head.

    Args:
        query: (B, T, H, d).
        key, value: (B, S, H, d).
        bias: (H, T, S), or None.
        masked: (B, T or 1, S) float, added to the logits of all heads, or None.
        library: "cudnn", or "xla" for the same computation without cuDNN, on any platform.

    Returns:
        (B, T, H, d) in the dtype of `value`.
    """
    added, lengths = _additive(query, key, bias, masked), None
    if added is not None:
        added = _even(_even(added, axis=3, fill=_PADDED_LOGIT), axis=2)
    elif key.shape[1] % 2:
        lengths = jnp.full(len(key), key.shape[1], jnp.int32)
    tokens = query.shape[1]
    # In training the kernel needs even lengths, and images have 1 + N = 577 tokens.
    query, key, value = (_even(x, axis=1) for x in (query, key, value))
    output = jax.nn.dot_product_attention(
        query, key, value, bias=added, key_value_seq_lengths=lengths, implementation=library
    )
    return output[:, :tokens]


def even_lengths(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Appends a token to an odd number of them, which the bias hides, as a key, from all others.

    Args:
        x: (B, T, D) states, from which queries, keys and values are computed.
        bias: (H, T, T).
    """
    return _even(x, axis=1), _even(_even(bias, axis=2, fill=_PADDED_LOGIT), axis=1)


def _additive(query, key, bias, masked):
    """Adds bias and mask to one (1 or B, 1 or H, T, S) array in the dtype of `query`."""
    terms = []
    if bias is not None:
        terms.append(bias[None])
    if masked is not None:
        per_query = (len(masked), query.shape[1], key.shape[1])
        terms.append(jnp.broadcast_to(masked, per_query)[:, None])
    return sum(terms[1:], terms[0]).astype(query.dtype) if terms else None


def _even(x: jax.Array, axis: int, fill: float = 0.0) -> jax.Array:
    """Appends one element along an axis of odd length."""
    if x.shape[axis] % 2 == 0:
        return x
    widths = [(0, int(i == axis)) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=fill)
