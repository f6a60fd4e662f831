"""The BEiT-v2 vision encoder (arXiv 2208.06366) of X2-VLM, and region embeddings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from capret_jax.config import ComputeConfig, ModelConfig
from capret_jax.config.model import PATCH_SIZE
from capret_jax.errors import InputError
from capret_jax.models.attention import attention
from capret_jax.models.kernels.cudnn_attention import even_lengths
from capret_jax.models.layers import (
    Mlp,
    dense,
    drop_path,
    layer_norm,
    merge_heads,
    run_layers,
    scaled_dense,
    split_heads,
    split_key,
)
from capret_jax.models.precision import matmul

_EPSILON = 1e-6
_MLP_RATIO = 4
_CLS_ROWS = 3  # cls -> patch, patch -> cls, cls -> cls


def relative_position_index(grid: int) -> np.ndarray:
    """Returns the row of the bias table of each pair of positions of a grid x grid image.

    Returns:
        (1+N, 1+N) int32. Patches i, j use (yi-yj+g-1)*(2g-1) + (xi-xj+g-1); the table's last three
        rows are cls -> patch, patch -> cls and cls -> cls.
    """
    y, x = np.divmod(np.arange(grid * grid), grid)
    rows = (
        (y[:, None] - y[None, :] + grid - 1) * (2 * grid - 1) + x[:, None] - x[None, :] + grid - 1
    )
    table_rows = relative_position_rows(grid)
    index = np.empty((1 + grid * grid, 1 + grid * grid), np.int32)
    index[1:, 1:] = rows
    index[0, :] = table_rows - 3
    index[:, 0] = table_rows - 2
    index[0, 0] = table_rows - 1
    return index


def relative_position_rows(grid: int) -> int:
    """Returns the number of rows of a bias table: all patch offsets, and 3 of the CLS position."""
    return (2 * grid - 1) ** 2 + _CLS_ROWS


class VisionAttention(nnx.Module):
    """Self-attention with relative position bias; queries and values have a bias, keys none."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig):
        width = config.vision_width
        self.implementation = compute.attention
        self.heads = config.vision_heads
        self.grid = config.grid
        self.qkv = dense(width, 3 * width, use_bias=False)
        self.q_bias = nnx.Param(jnp.zeros((width,)))
        self.v_bias = nnx.Param(jnp.zeros((width,)))
        self.relative_position_bias = nnx.Param(
            jnp.zeros((relative_position_rows(self.grid), self.heads))
        )
        self.out = dense(width, width)

    def __call__(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        """Computes (B, 1+N, D) outputs, times a (D,) scale, from (B, 1+N, D) states."""
        tokens = x.shape[1]
        index = relative_position_index(self.grid)
        position_bias = jnp.moveaxis(self.relative_position_bias[...][index], -1, 0)
        if self.implementation == "cudnn":
            # Before the projections, which then write what the kernel reads.
            x, position_bias = even_lengths(x, position_bias)
        # Three products, because splitting the result of one would be a copy of it.
        to_query, to_key, to_value = jnp.split(self.qkv.kernel[...], 3, axis=1)
        projected = (
            matmul(x, to_query) + self.q_bias[...],
            matmul(x, to_key),
            matmul(x, to_value) + self.v_bias[...],
        )
        query, key, value = (split_heads(part, self.heads) for part in projected)
        attended = attention(
            query, key, value, bias=position_bias, implementation=self.implementation
        )
        return scaled_dense(self.out, merge_heads(attended), scale)[:, :tokens]


class VisionBlock(nnx.Module):
    """Pre-norm transformer block with layer scale and stochastic depth."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig):
        width = config.vision_width
        self.norm1 = layer_norm(width, _EPSILON)
        self.attention = VisionAttention(config, compute)
        self.gamma_1 = nnx.Param(jnp.full((width,), config.layer_scale, jnp.float32))
        self.norm2 = layer_norm(width, _EPSILON)
        self.mlp = Mlp(width, _MLP_RATIO * width)
        self.gamma_2 = nnx.Param(jnp.full((width,), config.layer_scale, jnp.float32))

    def __call__(
        self,
        x: jax.Array,
        key: jax.Array | None = None,
        drop_path_rate: float | jax.Array = 0.0,
    ) -> jax.Array:
        """Computes (B, 1+N, D) states from (B, 1+N, D); `key` turns stochastic depth on."""
        attention_key, mlp_key = split_key(key, 2)
        branch = self.attention(self.norm1(x), self.gamma_1[...])
        x = x + drop_path(branch, drop_path_rate, attention_key)
        branch = self.mlp(self.norm2(x), self.gamma_2[...])
        return x + drop_path(branch, drop_path_rate, mlp_key)


class VisionEncoder(nnx.Module):
    """Encodes pixels to one embedding per patch, and their mean at position 0."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig):
        width = config.vision_width
        self.compute = compute
        self.image_size = config.image_size
        self.patch_embed = dense(PATCH_SIZE * PATCH_SIZE * 3, width)
        self.cls_token = nnx.Param(jnp.zeros((width,)))
        self.drop_path_rates = np.linspace(0.0, config.drop_path, config.vision_depth).tolist()
        self.blocks = nnx.List([VisionBlock(config, compute) for _ in self.drop_path_rates])
        self.norm = layer_norm(width, _EPSILON)

    def embed_patches(self, pixels: jax.Array) -> jax.Array:
        """Embeds (B, S, S, 3) normalised float pixels as (B, 1+N, D): the CLS token, then patches.

        Patches are in row-major order.

        Raises:
            InputError: the images have another size than the model.
        """
        if pixels.shape[1:] != (self.image_size, self.image_size, 3):
            raise InputError(
                f"images of shape {pixels.shape} do not fit this model: it takes "
                f"(B, {self.image_size}, {self.image_size}, 3)."
            )
        patches = self.patch_embed(_patchify(pixels).astype(self.patch_embed.kernel.dtype))
        cls = jnp.broadcast_to(self.cls_token[...], (patches.shape[0], 1, patches.shape[2]))
        return jnp.concatenate([cls.astype(patches.dtype), patches], axis=1)

    def __call__(self, pixels: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Encodes (B, S, S, 3) normalised float pixels as (B, 1+N, D).

        A `key` turns stochastic depth on.

        Raises:
            InputError: the images have another size than the model.
        """
        x = self.embed_patches(pixels)
        keys = split_key(key, len(self.blocks))
        layer_arguments = [
            {"key": key, "drop_path_rate": rate}
            for key, rate in zip(keys, self.drop_path_rates, strict=True)
        ]
        x = run_layers(self.blocks, x, (), layer_arguments, self.compute)
        # The CLS output is not used: BEiT-v2 classifies from the mean of the patches.
        patches = self.norm(x[:, 1:])
        return jnp.concatenate([patches.mean(axis=1, keepdims=True), patches], axis=1)


def _patchify(pixels: jax.Array) -> jax.Array:
    """Reshapes (B, H, W, 3) to (B, N, 16*16*3): inputs of a 16x16 convolution of stride 16."""
    batch, height, width, channels = pixels.shape
    rows, columns = height // PATCH_SIZE, width // PATCH_SIZE
    x = pixels.reshape(batch, rows, PATCH_SIZE, columns, PATCH_SIZE, channels)
    return x.swapaxes(2, 3).reshape(batch, rows * columns, -1)


def region_mask(boxes: jax.Array, grid: int) -> jax.Array:
    """Computes the mask of the positions that belong to each box.

    Args:
        boxes: (R, 4) float x1, y1, x2, y2 in pixels of the model's input.
        grid: patches along one side.

    Returns:
        (R, 1+N) float32 0/1: position 0, and every patch that the box overlaps (at least one).
    """

    def overlaps(low, high):
        first = jnp.clip(jnp.floor(low / PATCH_SIZE), 0, grid - 1)
        last = jnp.clip(jnp.ceil(high / PATCH_SIZE), first + 1, grid)
        cells = jnp.arange(grid)
        return (cells >= first[:, None]) & (cells < last[:, None])

    rows, columns = overlaps(boxes[:, 1], boxes[:, 3]), overlaps(boxes[:, 0], boxes[:, 2])
    patches = (rows[:, :, None] & columns[:, None, :]).reshape(len(boxes), -1)
    return jnp.pad(patches, ((0, 0), (1, 0)), constant_values=True).astype(jnp.float32)


def box_regions(image: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Embeds R regions of each image, given by their boxes.

    Args:
        image: (B, 1+N, D), the output of the vision encoder.
        boxes: (B*R, 4) float cx, cy, w, h as fractions of the image; R consecutive ones per image.

    Returns:
        (B*R, 1+N, D) region embeddings of `pool_regions`, and their (B*R, 1+N) float32 masks.
    """
    images, positions, width = image.shape
    regions, mask = len(boxes) // images, _box_mask(boxes, positions)
    # Broadcast and reshaped, not repeated: nothing moves between devices if axis 0 is sharded.
    copies = jnp.broadcast_to(image[:, None], (images, regions, positions, width))
    return pool_regions(copies.reshape(-1, positions, width), mask), mask


def pool_boxes(image: jax.Array, boxes: jax.Array) -> jax.Array:
    """Embeds R boxes of each image like `box_regions`, without a copy of the patches for each.

    Args:
        image: (B, 1+N, D), the output of the vision encoder.
        boxes: (B*R, 4), as in `box_regions`.

    Returns:
        (B*R, 1, D), position 0 of the regions, which is what `X2VLM.image_features` reads.
    """
    images, positions, width = image.shape
    mask = _box_mask(boxes, positions)[:, 1:].reshape(images, -1, positions - 1).astype(image.dtype)
    sums = jnp.einsum("brn,bnd->brd", mask, image[:, 1:])
    pooled = sums / jnp.maximum(mask.sum(axis=2, keepdims=True), 1)
    return pooled.reshape(-1, 1, width)


def _box_mask(boxes: jax.Array, positions: int) -> jax.Array:
    """Returns the (B*R, 1+N) mask of boxes, which are cx, cy, w, h as fractions of the image."""
    grid = math.isqrt(positions - 1)
    corners = jnp.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    return region_mask(corners * grid * PATCH_SIZE, grid)


def pool_regions(image: jax.Array, mask: jax.Array) -> jax.Array:
    """Embeds regions: position 0 becomes the mean over the patches of the region.

    Args:
        image: (R, 1+N, D), the output of the vision encoder for the image of each region.
        mask: (R, 1+N) 0/1 from `region_mask`.

    Returns:
        (R, 1+N, D), with all patches.
    """
    patch_mask = mask[:, 1:, None].astype(image.dtype)
    pooled = (image[:, 1:] * patch_mask).sum(axis=1) / jnp.maximum(patch_mask.sum(axis=1), 1)
    return jnp.concatenate([pooled[:, None], image[:, 1:]], axis=1)
