"""Scaled dot-product attention of all encoders, on XLA or by a fused kernel."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from capret_jax.config.attention import KERNEL_PLATFORMS, misfit
from capret_jax.distributed.mesh import divides_over_devices, heads_per_device, per_device
from capret_jax.models.kernels import cudnn_attention, tpu_attention
from capret_jax.models.kernels.tpu_attention import OUTPUT_NAME
from capret_jax.models.precision import einsum

# The reference adds this to the logits of padded keys; its exponential is 0 in float32.
MASKED_LOGIT = -10000.0


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    implementation: str = "xla",
    drop: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Computes scaled dot-product attention (arXiv 1706.03762, eq. 1) with an additive bias.

    Args:
        query: (B, T, H, D/H).
        key, value: (B, S, H, D/H).
        bias: (H, T, S), added to the scaled logits.
        mask: (B, S), or (B, T, S) where queries differ: 1 for keys that are visible, 0 for others.
        implementation: "xla", or "tpu" or "cudnn" for a fused kernel where it supports these
            arguments.
        drop: dropout of the (B, H, T, S) attention weights; None for none.

    Returns:
        (B, T, H, D/H), in the dtype of `value`. Logits and softmax are float32.
    """
    masked = None
    if mask is not None:
        per_query = mask if mask.ndim == 3 else mask[:, None, :]
        masked = jnp.where(per_query > 0, 0.0, MASKED_LOGIT)
    if drop is not None or not _fits(implementation, query, key, bias, masked):
        return _xla(query, key, value, bias=bias, masked=masked, drop=drop)
    rows = ("batch", None, "heads", None)
    inputs = [rows, rows, rows, ("heads", None, None)]
    if implementation == "tpu":
        return per_device(tpu_attention.biased_attention, inputs, rows)(query, key, value, bias)
    kernel = per_device(cudnn_attention.fused_attention, [*inputs, ("batch", None, None)], rows)
    return kernel(query, key, value, bias, masked)


def _fits(implementation, query, key, bias, masked) -> bool:
    if implementation not in KERNEL_PLATFORMS or not divides_over_devices(len(query)):
        return False
    heads, width = heads_per_device(query.shape[2]), query.shape[3]
    if misfit(implementation, heads, width, query.dtype.name):
        return False
    plain = bias is not None and masked is None and query.shape == key.shape
    return plain or implementation == "cudnn"


def _xla(query, key, value, *, bias, masked, drop):
    query = query * query.shape[-1] ** -0.5
    logits = einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    if masked is not None:
        logits = logits + masked[:, None]
    # A softmax whose sums divide the outputs instead of the S / (D/H) times larger weights. Heads
    # stay in front until the end, so that XLA on CPU fuses nothing into the inputs of the products.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    kept = weights if drop is None else drop(weights)
    output = einsum("bhts,bshd->bhtd", kept.astype(value.dtype), value)
    # Named before the division, because the gradient of the division needs this value.
    output = checkpoint_name(output, OUTPUT_NAME) / weights.sum(axis=-1, keepdims=True)
    return output.astype(value.dtype).swapaxes(1, 2)
