"""Box regression losses: L1 and generalised IoU (arXiv 1902.09630), as in DETR and X2-VLM."""

import jax
import jax.numpy as jnp

from capret_jax.losses import Loss

# Keeps the ratios and their gradients finite for boxes without area.
_EPSILON = 1e-7


def corners(boxes: jax.Array) -> jax.Array:
    """Converts (..., 4) boxes from cx, cy, w, h to x1, y1, x2, y2."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([center - half, center + half], axis=-1)


def iou_and_giou(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the IoU in [0, 1] and the generalised IoU in [-1, 1] of pairs of boxes.

    Args:
        a, b: (..., 4) boxes x1, y1, x2, y2.

    Returns:
        (...) IoU, and (...) generalised IoU.
    """

    def area(low, high):
        return jnp.prod(jnp.maximum(high - low, 0.0), axis=-1)

    intersection = area(jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - intersection
    hull = area(jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:]))
    iou = intersection / jnp.maximum(union, _EPSILON)
    return iou, iou - (hull - union) / jnp.maximum(hull, _EPSILON)


def box_losses(predicted: jax.Array, target: jax.Array, valid: jax.Array) -> tuple[Loss, Loss]:
    """Returns the L1 loss, summed over the coordinates, and 1 - GIoU; means over the valid boxes.

    Args:
        predicted, target: (B, 4) float32 boxes cx, cy, w, h as fractions of the image.
        valid: (B,) bool, True for examples that have a box.
    """
    count = valid.sum().astype(jnp.float32)
    iou, giou = iou_and_giou(corners(predicted), corners(target))
    distance = jnp.abs(predicted - target).sum(axis=-1)

    def mean(values):
        return jnp.where(valid, values, 0.0).sum() / jnp.maximum(count, 1.0)

    metrics = {"iou": (jnp.where(valid, iou, 0.0).sum(), count)}
    return Loss(mean(distance), count, {}), Loss(mean(1.0 - giou), count, metrics)
