"""ArcFace (arXiv 1801.07698) with its classes split over all devices of the mesh.

Each device compares all features with its own classes only. For the softmax over C classes the
devices exchange three numbers per example: the cosine of the true class, the largest other cosine,
and the sum over the other classes. The weights and their gradient stay on their device.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from capret_jax.config import LossConfig
from capret_jax.data.batch import NO_IDENTITY
from capret_jax.distributed.mesh import AXES
from capret_jax.losses import Loss, StepContext
from capret_jax.losses.margin import GRADIENTS, class_margins

# Replaces the cosines of the true class and of padding among the rivals. Finite, since these may be
# the only classes of a device, and inf - inf is NaN.
_NO_RIVAL = -1e9
# Class id of padding rows: neither a class nor `NO_IDENTITY`.
_PADDING = -2
# Folded into the step's key to draw classes; other random draws of the step fold in small numbers.
_SAMPLING = 2**30
# Largest number of logits that a device computes at once: the gradient needs about four arrays of
# that size. Larger batches are computed in chunks, and their logits again for the gradient. A chunk
# has at least `_MIN_CHUNK` examples, or reading the weights would take longer than the products.
_MAX_LOGITS, _MIN_CHUNK = 2**24, 128


class ClassHead(NamedTuple):
    """Parameters and sizes of the C classes, the training identities.

    Attributes:
        weights: (R, K, E) float32, K sub-centres of any norm per class; the last R - C rows are
            padding. They are split over the devices without a copy if the number of devices
            divides R.
        sizes: (C,) int NumPy array, number of training examples per class.
    """

    weights: jax.Array
    sizes: np.ndarray


class _Comparison(NamedTuple):
    """Similarities of B examples to the classes, (B,) float32 each.

    Attributes:
        true: cosine of the true class.
        rival: largest cosine of another class.
        others: log-sum-exp of the other classes' logits; from `_compare_on_device` the sum of
            exp(scale * (cosine - rival)).
    """

    true: jax.Array
    rival: jax.Array
    others: jax.Array


def arcface_loss(
    features: jax.Array,
    head: ClassHead,
    labels: jax.Array,
    context: StepContext,
    config: LossConfig,
) -> Loss:
    """Returns the mean cross entropy over the examples that have an identity.

    The cosine of a class is the largest of its K sub-centres' (Deng et al., ECCV 2020, eq. 3). With
    `config.arcface_sampled` below 1, each device compares with that share of its classes, drawn
    anew at each step (PartialFC, arXiv 2203.15565); the classes of the batch are always included.

    Args:
        features: (B, E) float32, L2-normalised.
        head: parameters and sizes of the classes.
        labels: (B,) int classes, `NO_IDENTITY` where an example has none.
        context: mesh and key of the step; the classes are split over all devices of the mesh.
        config: margins, scale, gradient and sampled share of the classes.

    Returns:
        The loss; its metric "accuracy" counts the compared classes only.
    """
    compared = _compare(features, head, labels, context, config)
    valid = labels != NO_IDENTITY
    margins: jax.Array | float = config.arcface_margin
    if config.arcface_size_margin:
        by_class = class_margins(head.sizes, config.arcface_margin, config.arcface_size_margin)
        margins = jnp.asarray(by_class)[labels]
    shift = GRADIENTS[config.arcface_gradient]
    # -log(e^t / (e^t + e^o)) = log(1 + e^(o - t)).
    true_logits = config.arcface_scale * shift(compared.true, margins)
    entropies = jax.nn.softplus(compared.others - true_logits)
    count = valid.sum().astype(jnp.float32)
    hits = ((compared.true > compared.rival) & valid).sum().astype(jnp.float32)
    value = jnp.where(valid, entropies, 0.0).sum() / jnp.maximum(count, 1.0)
    return Loss(value, count, {"accuracy": (hits, count)})


def _compare(
    features: jax.Array,
    head: ClassHead,
    labels: jax.Array,
    context: StepContext,
    config: LossConfig,
) -> _Comparison:
    classes, scale, class_weights = len(head.sizes), config.arcface_scale, head.weights
    # A small head is replicated, and its rows need not divide over the devices: more padding does.
    missing = -len(class_weights) % context.mesh.size
    if missing:
        class_weights = jnp.pad(class_weights, ((0, missing), (0, 0), (0, 0)))

    def on_device(features, weights, labels, key):
        device = jax.lax.axis_index(AXES)
        class_ids = device * len(weights) + jnp.arange(len(weights))
        if config.arcface_sampled < 1.0:
            device_key = jax.random.fold_in(jax.random.fold_in(key, _SAMPLING), device)
            kept = draw_classes(device_key, class_ids, labels, classes, config.arcface_sampled)
            weights, class_ids = weights[kept], class_ids[kept]
        # No label equals the class id of padding.
        class_ids = jnp.where(class_ids < classes, class_ids, _PADDING)
        local = _compare_on_device(features, weights, class_ids, labels, scale)
        best = jax.lax.pmax(local.rival, AXES)
        exp_sum = jax.lax.psum(local.others * jnp.exp(scale * (local.rival - best)), AXES)
        return _Comparison(jax.lax.psum(local.true, AXES), best, scale * best + jnp.log(exp_sum))

    whole = PartitionSpec()
    return jax.shard_map(
        on_device,
        mesh=context.mesh,
        in_specs=(whole, PartitionSpec(AXES), whole, whole),
        out_specs=whole,
    )(features, class_weights, labels, context.key)


def _compare_on_device(
    features: jax.Array,
    weights: jax.Array,
    class_ids: jax.Array,
    labels: jax.Array,
    scale: float,
) -> _Comparison:
    """Compares the examples with the classes of one device.

    The true cosine is 0 where the true class is on another device.
    """
    # Dividing the products avoids a normalised copy of the weights. Weight decay may bring padding
    # rows to 0, hence the floor.
    norms = jnp.sqrt(jnp.maximum((weights**2).sum(axis=2), 1e-24))

    def compare(example):
        feature, label = example
        products = jnp.einsum("e,cke->ck", feature, weights, precision=jax.lax.Precision.HIGHEST)
        cosine = (products / norms).max(axis=1)
        is_true = label == class_ids
        rivals = jnp.where(is_true | (class_ids == _PADDING), _NO_RIVAL, cosine)
        best = jax.lax.stop_gradient(rivals.max())
        true = jnp.where(is_true, cosine, 0.0).sum()
        return _Comparison(true, best, jnp.exp(scale * (rivals - best)).sum())

    chunk = max(_MIN_CHUNK, _MAX_LOGITS // norms.size)
    if chunk >= len(features):
        return jax.vmap(compare)((features, labels))
    return jax.lax.map(jax.checkpoint(compare), (features, labels), batch_size=chunk)


def draw_classes(
    key: jax.Array, class_ids: jax.Array, labels: jax.Array, classes: int, share: float
) -> jax.Array:
    """Draws the rows of a device to compare with: the batch's classes, then others at random.

    Args:
        key: PRNG key of the device.
        class_ids: (R,) int classes of the device's R rows; ids from `classes` on are padding.
        labels: (B,) int classes of the batch.
        classes: C, number of classes on all devices.
        share: fraction of the rows to draw. At least min(B, R) are drawn, enough for all labels.

    Returns:
        (max(ceil(share * R), min(B, R)),) int32 distinct rows.
    """
    rows = len(class_ids)
    order = jax.random.uniform(key, (rows,))
    order = jnp.where(jnp.isin(class_ids, labels), 2.0, order)
    order = jnp.where(class_ids < classes, order, -1.0)
    return jax.lax.top_k(order, max(math.ceil(share * rows), min(len(labels), rows)))[1]
