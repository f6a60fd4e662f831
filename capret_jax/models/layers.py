"""Layers and helpers that the vision, text and fusion encoders share."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from capret_jax.config import ComputeConfig
from capret_jax.distributed.mesh import with_split_batch
from capret_jax.models.kernels.cudnn_attention import CUDNN_FORWARD
from capret_jax.models.kernels.tpu_attention import OUTPUT_NAME
from capret_jax.models.precision import dot_general, matmul

# Matrices start at zero here and get their values in `x2vlm.init_params`, from a single draw: XLA
# compiles every draw separately, which for 40 matrices took 10 s on a CPU.
_DRAWN_LATER = nnx.initializers.zeros
# No initializer here uses a key, and tracing the key counter of NNX takes 5 s at base size.
_NO_RNGS: Any = types.SimpleNamespace(params=lambda: None)


def dense(inputs: int, outputs: int, use_bias: bool = True) -> nnx.Linear:
    """Makes a linear layer, `x @ kernel + bias`."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        kernel_init=_DRAWN_LATER,
        dot_general=dot_general,
        rngs=_NO_RNGS,
    )


def embedding(rows: int, width: int) -> nnx.Embed:
    """Makes an embedding table, (rows, width)."""
    return nnx.Embed(rows, width, embedding_init=_DRAWN_LATER, rngs=_NO_RNGS)


def layer_norm(width: int, epsilon: float) -> nnx.LayerNorm:
    """Makes a layer normalisation over the last axis."""
    return nnx.LayerNorm(width, epsilon=epsilon, rngs=_NO_RNGS)


def gelu(x: jax.Array) -> jax.Array:
    """Applies the exact (erf) GELU, with which the checkpoints were trained."""
    return jax.nn.gelu(x, approximate=False)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """Reshapes (..., T, D) to (..., T, H, D/H)."""
    return x.reshape(*x.shape[:-1], heads, -1)


def merge_heads(x: jax.Array) -> jax.Array:
    """Reshapes (..., T, H, D/H) to (..., T, D)."""
    return x.reshape(*x.shape[:-2], -1)


def scaled_dense(layer: nnx.Linear, x: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Computes `scale * layer(x)`, with the scale in the parameters.

    The gradient of the scale then needs no output of the layer, which rematerialisation would
    compute again for it alone.

    Args:
        layer: linear layer of I inputs and O outputs, with bias.
        x: (..., I).
        scale: (O,); None for 1.
    """
    if scale is None:
        return layer(x)
    assert layer.bias is not None
    return matmul(x, layer.kernel[...] * scale) + layer.bias[...] * scale


class Mlp(nnx.Module):
    """Two linear layers with a GELU between them: D -> hidden -> D."""

    def __init__(self, width: int, hidden: int):
        self.up = dense(width, hidden)
        self.down = dense(hidden, width)

    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """Computes (..., D) from (..., D), multiplied by a (D,) scale if there is one."""
        return scaled_dense(self.down, gelu(self.up(x)), scale)


def run_layers(
    layers: nnx.List,
    x: jax.Array,
    context: tuple,
    layer_arguments: list[dict[str, Any]],
    compute: ComputeConfig,
) -> jax.Array:
    """Applies one layer after the other, with rematerialisation and scan as configured.

    Args:
        layers: modules of the same structure, called as
            `layer(x, *context, **layer_arguments[i])`.
        x: input of the first layer.
        context: arrays, or None, common to all layers.
        layer_arguments: keyword arguments of each layer: arrays, numbers or None.
        compute: settings of remat and scan.

    Returns:
        The output of the last layer.
    """
    graphdef, _ = nnx.split(layers[0])

    def call(x, state, kwargs, context):
        x = nnx.merge(graphdef, state)(with_split_batch(x), *context, **kwargs)
        return with_split_batch(x)

    if compute.remat != "none":
        # A scan keeps XLA from merging recomputation with the forward pass by itself; the barriers
        # that otherwise do so would keep it from fusing.
        policy = REMAT_POLICIES[compute.remat]
        call = jax.checkpoint(call, policy=policy, prevent_cse=not compute.scan)
    states = [nnx.state(layer) for layer in layers]
    if not compute.scan:
        for state, kwargs in zip(states, layer_arguments, strict=True):
            x = call(x, state, kwargs, context)
        return x
    layered = zip(states, layer_arguments, strict=True)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layered)

    def body(x, layer):
        state, kwargs = layer
        return call(x, state, kwargs, context), None

    return jax.lax.scan(body, x, stacked)[0]


def dropout_arguments(keys: list[jax.Array | None], drop_path: float) -> list[dict[str, Any]]:
    """Returns the keyword arguments of BERT layers in training, for `run_layers`.

    Args:
        keys: key of each layer; None for no dropout.
        drop_path: rate of stochastic depth in the last layer; it grows linearly from 0 in the
            first, as in X2-VLM.
    """
    if not drop_path:  # then layers of a scan draw nothing for it
        return [{"key": key} for key in keys]
    rates = np.linspace(0.0, drop_path, len(keys)).tolist()
    return [{"key": key, "drop_path_rate": rate} for key, rate in zip(keys, rates, strict=True)]


def _keeps_attention(primitive, *arguments, **parameters) -> bool:
    """Keeps outputs of attention: those with a name, and those of cuDNN's kernel."""
    named = jax.checkpoint_policies.save_only_these_names(OUTPUT_NAME)
    return primitive.name == CUDNN_FORWARD or named(primitive, *arguments, **parameters)


REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": _keeps_attention,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _keeps_attention
    ),
}


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Splits a key into `count` independent keys; returns `count` times None for None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def dropout(x: jax.Array, rate: float | jax.Array, key: jax.Array | None) -> jax.Array:
    """Zeroes a fraction `rate` of the elements and scales up the rest; identity without a key."""
    return _drop(x, rate, key, x.shape)


def drop_path(x: jax.Array, rate: float | jax.Array, key: jax.Array | None) -> jax.Array:
    """Applies stochastic depth (arXiv 1603.09382): zeroes the branch of random rows of axis 0."""
    return _drop(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def drop_branch(
    x: jax.Array, rate: float, path_rate: float | jax.Array, key: jax.Array | None
) -> jax.Array:
    """Applies dropout at `rate`, then stochastic depth at `path_rate`; identity without a key."""
    x = dropout(x, rate, key)
    # Dropout draws with the key itself, and that of attention weights with its fold 1.
    return x if key is None else drop_path(x, path_rate, jax.random.fold_in(key, 2))


def _drop(x, rate, key, mask_shape):
    # The rate is an array if layers are scanned.
    if key is None or (isinstance(rate, float) and rate == 0.0):
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, mask_shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0).astype(x.dtype)
