"""ArcFace (arXiv 1801.07698) with its classes split over all devices of the mesh.

Each device compares all features with its own classes only; of a softmax over C classes just three
numbers per example travel: the true class's cosine, the best other one, and the others' sum.
Neither the weights nor their gradient ever leave their device.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from capret_jax.data.batch import NO_IDENTITY
from capret_jax.distributed.mesh import AXES
from capret_jax.losses import Loss
from capret_jax.losses.margin import GRADIENTS, class_margins

# The cosine of what is no rival. Finite: a device may hold nothing else, and inf - inf is NaN.
_NO_RIVAL = -1e9
# Keeps the draws of classes apart from the step's others, which count from 0.
_SAMPLING = 2**30
# Logits of a device at a time. The gradient needs some four arrays of their size, so that larger
# batches go in chunks, whose logits are computed anew for the gradient; but not so few examples
# that reading the weights takes longer than multiplying with them.
_MAX_LOGITS, _MIN_CHUNK = 2**24, 128


def arcface_loss(
    features: jax.Array,
    class_weights: jax.Array,
    labels: jax.Array,
    class_sizes: np.ndarray,
    mesh: Mesh,
    key: jax.Array,
    *,
    margin: float,
    scale: float,
    gradient: str = "textbook",
    size_margin: float = 0.0,
    sampled: float = 1.0,
) -> Loss:
    """Mean cross entropy over the examples that have an identity.

    The cosine of a class is the largest of its K sub-centres' (Deng et al., ECCV 2020, eq. 3).

    Args:
        features: (B, E), L2-normalised.
        class_weights: (R, K, E), normalised here; the R - C rows behind the C classes are padding.
            Split over the devices without a copy if their number divides R.
        labels: (B,) int class, or `NO_IDENTITY`.
        class_sizes: (C,) int, training examples per class.
        mesh: the batch's mesh; the classes are split over all of its devices.
        key: the step's key, for the draws of classes.
        margin: radians.
        scale: the logits' range.
        gradient: one of `GRADIENTS`.
        size_margin: radians, added for the rarest class and less for others, see `class_margins`.
        sampled: share of the classes of each device that an example is compared with, drawn anew
            at each step (PartialFC, arXiv 2203.15565); the batch's own classes always are.

    Returns:
        The loss; its metric "accuracy" is among the classes compared with.
    """
    classes = len(class_sizes)
    true, rival, others = _compare(
        features, class_weights, labels, classes, mesh, key, scale, sampled
    )
    valid = labels != NO_IDENTITY
    margins: jax.Array | float = margin
    if size_margin:
        margins = jnp.asarray(class_margins(class_sizes, margin, size_margin))[labels]
    # -log(e^t / (e^t + e^o)) = log(1 + e^(o - t)).
    entropies = jax.nn.softplus(others - scale * GRADIENTS[gradient](true, margins))
    count = valid.sum().astype(jnp.float32)
    hits = ((true > rival) & valid).sum().astype(jnp.float32)
    value = jnp.where(valid, entropies, 0.0).sum() / jnp.maximum(count, 1.0)
    return Loss(value, count, {"accuracy": (hits, count)})


def _compare(features, class_weights, labels, classes, mesh, key, scale, sampled):
    """(B,) cosine of the true class, best other cosine, and log-sum-exp of the other logits."""
    # Few classes, which are whole on every device, may not divide: any number of devices will do.
    missing = -len(class_weights) % mesh.size
    if missing:
        class_weights = jnp.pad(class_weights, ((0, missing), (0, 0), (0, 0)))

    def on_device(features, weights, labels, key):
        device = jax.lax.axis_index(AXES)
        class_ids = device * len(weights) + jnp.arange(len(weights))
        if sampled < 1.0:
            device_key = jax.random.fold_in(jax.random.fold_in(key, _SAMPLING), device)
            kept = draw_classes(device_key, class_ids, labels, classes, sampled)
            weights, class_ids = weights[kept], class_ids[kept]
        true, rival, mass = _compare_own(features, weights, class_ids, labels, classes, scale)
        best = jax.lax.pmax(rival, AXES)
        mass = jax.lax.psum(mass * jnp.exp(scale * (rival - best)), AXES)
        return jax.lax.psum(true, AXES), best, scale * best + jnp.log(mass)

    whole = PartitionSpec()
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(whole, PartitionSpec(AXES), whole, whole),
        out_specs=whole,
    )(features, class_weights, labels, key)


def _compare_own(features, weights, class_ids, labels, classes, scale):
    """One device's part of `_compare`: the sum is of exp(scale * (cosine - best other cosine)).

    The true cosine is 0 where the true class is on another device.
    """
    # Dividing the products spares a normalised copy of the weights. Weight decay may bring rows of
    # padding to 0, hence the floor.
    norms = jnp.sqrt(jnp.maximum((weights**2).sum(axis=2), 1e-24))

    def compare(example):
        feature, label = example
        cosine = (jnp.einsum("e,cke->ck", feature, weights) / norms).max(axis=1)
        is_true = label == class_ids
        rivals = jnp.where(is_true | (class_ids >= classes), _NO_RIVAL, cosine)
        best = jax.lax.stop_gradient(rivals.max())
        return jnp.where(is_true, cosine, 0.0).sum(), best, jnp.exp(scale * (rivals - best)).sum()

    chunk = max(_MIN_CHUNK, _MAX_LOGITS // norms.size)
    if chunk >= len(features):
        return jax.vmap(compare)((features, labels))
    return jax.lax.map(jax.checkpoint(compare), (features, labels), batch_size=chunk)


def draw_classes(
    key: jax.Array, class_ids: jax.Array, labels: jax.Array, classes: int, share: float
) -> jax.Array:
    """Which of a device's classes take part: those of the batch, then others at random.

    Args:
        key: the device's.
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
