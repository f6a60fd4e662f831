"""ArcFace (arXiv 1801.07698) with its classes split over all devices of the mesh.

Each device compares all features with its own classes only; of a softmax over C classes just three
numbers per example travel: the true class's cosine, the best other one, and the others' sum.
Neither the weights nor their gradient ever leave their device.
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

# The cosine of a class that is no rival. Finite: a device may hold nothing else, and inf - inf is
# NaN.
_NO_RIVAL = -1e9
# Class id of rows of padding: neither a class nor `NO_IDENTITY`.
_PADDING = -2
# Keeps the draws of classes apart from the step's others, which count from 0.
_SAMPLING = 2**30
# Logits of a device at a time. The gradient needs some four arrays of their size, so that larger
# batches go in chunks, whose logits are computed anew for the gradient; but not so few examples
# that reading the weights takes longer than multiplying with them.
_MAX_LOGITS, _MIN_CHUNK = 2**24, 128


class ClassHead(NamedTuple):
    """Directions of the training identities.

    Attributes:
        weights: (R, K, E) float32 of any norm; the R - C rows behind the C classes are padding.
            Split over the devices without a copy if their number divides R.
        sizes: (C,) int NumPy array, training examples per class.
    """

    weights: jax.Array
    sizes: np.ndarray


class _Comparison(NamedTuple):
    """Results of comparing (B,) examples with all classes.

    Attributes:
        true: cosine of the true class.
        rival: largest other cosine.
        others: log-sum-exp of the other classes' logits, or its sum on one device.
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
    """Mean cross entropy over the examples that have an identity.

    The cosine of a class is the largest of its K sub-centres' (Deng et al., ECCV 2020, eq. 3). With
    `config.arcface_sampled` below 1, each device compares with that share of its classes, drawn
    anew at each step (PartialFC, arXiv 2203.15565); the batch's own classes always take part.

    Args:
        features: (B, E), L2-normalised.
        head: the classes.
        labels: (B,) int class, or `NO_IDENTITY`.
        context: mesh and key of the step; the classes are split over all devices of the mesh.
        config: margins, scale, gradient and share of the classes.

    Returns:
        The loss; its metric "accuracy" is among the classes compared with.
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
    # Few classes, which are whole on every device, may not divide: any number of devices will do.
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
        # Padding gets an id that no label has.
        class_ids = jnp.where(class_ids < classes, class_ids, _PADDING)
        own = _compare_own(features, weights, class_ids, labels, scale)
        best = jax.lax.pmax(own.rival, AXES)
        mass = jax.lax.psum(own.others * jnp.exp(scale * (own.rival - best)), AXES)
        return _Comparison(jax.lax.psum(own.true, AXES), best, scale * best + jnp.log(mass))

    whole = PartitionSpec()
    return jax.shard_map(
        on_device,
        mesh=context.mesh,
        in_specs=(whole, PartitionSpec(AXES), whole, whole),
        out_specs=whole,
    )(features, class_weights, labels, context.key)


def _compare_own(
    features: jax.Array,
    weights: jax.Array,
    class_ids: jax.Array,
    labels: jax.Array,
    scale: float,
) -> _Comparison:
    """One device's part of `_compare`: `others` is the sum of exp(scale * (cosine - rival)).

    The true cosine is 0 where the true class is on another device.
    """
    # Dividing the products spares a normalised copy of the weights. Weight decay may bring rows of
    # padding to 0, hence the floor.
    norms = jnp.sqrt(jnp.maximum((weights**2).sum(axis=2), 1e-24))

    def compare(example):
        feature, label = example
        cosine = (jnp.einsum("e,cke->ck", feature, weights) / norms).max(axis=1)
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
    """Draws the classes of a device that take part: the batch's, then others at random.

    Args:
        key: the device's PRNG key.
        class_ids: (R,) int, classes of the device's rows; from `classes` on they are padding.
        labels: (B,) int.
        classes: C, of all devices.
        share: of the rows to keep; never fewer than B, so that there is room for all labels.

    Returns:
        (max(ceil(share * R), min(B, R)),) int32 rows, each once.
    """
    rows = len(class_ids)
    order = jax.random.uniform(key, (rows,))
    order = jnp.where(jnp.isin(class_ids, labels), 2.0, order)
    order = jnp.where(class_ids < classes, order, -1.0)
    return jax.lax.top_k(order, max(math.ceil(share * rows), min(len(labels), rows)))[1]
