"""Image-text contrastive losses (ITC) over the global batch, in tiles.

Softmax: ALBEF (arXiv 2107.07651, eq. 1) with several positives. Sigmoid: SigLIP (arXiv 2303.15343,
eq. 1). Each device computes the rows of its own examples against the gathered features of all, in
chunks of columns that the backward pass computes again. So a device never holds more than
(rows, chunk) similarities, whatever the number of devices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from capret_jax.distributed.mesh import BATCH_AXES
from capret_jax.losses import Loss
from capret_jax.losses.pairs import PairLabels, positive_pairs

# Default number of columns of a tile.
CHUNK = 1024
# Logit of a masked pair: its exponential is 0. Finite, so that its product with 0 is 0.
_MASKED_LOGIT = -1e9
# SigLIP's initial bias. It is not learned, since X2-VLM checkpoints have no parameter for it.
SIGMOID_BIAS = -10.0


class ContrastiveFeatures(NamedTuple):
    """Inputs of a contrastive loss.

    Attributes:
        image, text: (B, E) float32 features, L2-normalised.
        temperature: () float32 divisor of the cosines.
    """

    image: jax.Array
    text: jax.Array
    temperature: jax.Array


class _Side(NamedTuple):
    """Features of one modality, with their labels.

    Attributes:
        features: (b, E) float32, of one device's b examples or of all.
        labels: labels of the same examples.
        place: (b,) int positions in the global batch.
    """

    features: jax.Array
    labels: PairLabels
    place: jax.Array


class _RowStatistics(NamedTuple):
    """Running softmax and sigmoid statistics of each row over the columns so far, (b,) each.

    Attributes:
        max_logit: largest logit.
        exp_sum: sum of exp(logit - max_logit).
        positive_sum: sum of the positives' logits.
        positives: number of positives.
        max_is_positive: True where the largest logit belongs to a positive.
        softplus_sum: sum of the sigmoid losses of the pairs.
    """

    max_logit: jax.Array
    exp_sum: jax.Array
    positive_sum: jax.Array
    positives: jax.Array
    max_is_positive: jax.Array
    softplus_sum: jax.Array


def contrastive_loss(
    features: ContrastiveFeatures,
    labels: PairLabels,
    mesh: Mesh,
    *,
    kind: str = "softmax",
    chunk: int = CHUNK,
) -> Loss:
    """Returns the mean loss over the valid examples of the global batch.

    The softmax loss is half the sum of the image-to-text and the text-to-image cross entropy, with
    a target that is uniform over an example's positives. The sigmoid loss is the sum over all pairs
    of an image.

    Args:
        features: image and text features of the global batch.
        labels: labels of the same examples; invalid ones are masked as rows and as columns.
        mesh: mesh that the batch is sharded over.
        kind: "softmax" or "sigmoid".
        chunk: number of columns of a tile.

    Returns:
        The loss; its metric "accuracy" counts images whose most similar text is a positive.
    """
    place = jnp.arange(len(labels.identity))

    def on_device(features, labels, place):
        images, texts = (_Side(x, labels, place) for x in (features.image, features.text))
        all_images, all_texts = _gather(images, texts)
        to_text = _row_statistics(images, all_texts, features.temperature, chunk)
        if kind == "sigmoid":
            return to_text.softplus_sum, to_text.max_is_positive
        to_image = _row_statistics(texts, all_images, features.temperature, chunk)
        losses = (_cross_entropy(to_text) + _cross_entropy(to_image)) / 2
        return losses, to_text.max_is_positive

    rows = PartitionSpec(BATCH_AXES)
    feature_specs: Any = ContrastiveFeatures(rows, rows, PartitionSpec())  # type: ignore[arg-type]
    losses, hits = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(feature_specs, rows, rows),
        out_specs=rows,
        check_vma=False,  # the scan's initial statistics do not vary over the mesh, later ones do
    )(features, labels, place)
    count = labels.valid.sum().astype(jnp.float32)
    value = jnp.where(labels.valid, losses, 0.0).sum() / jnp.maximum(count, 1.0)
    hits = (hits & labels.valid).sum().astype(jnp.float32)
    return Loss(value, count, {"accuracy": (hits, count)})


def _gather(images: _Side, texts: _Side) -> tuple[_Side, _Side]:
    """Gathers both sides of the global batch on every device."""
    arrays = images.features, texts.features, images.labels, images.place
    *features, labels, place = jax.lax.all_gather(arrays, BATCH_AXES, tiled=True)
    return _Side(features[0], labels, place), _Side(features[1], labels, place)


def _cross_entropy(statistics: _RowStatistics) -> jax.Array:
    """Returns the (b,) cross entropies against the uniform distribution over the positives."""
    normaliser = statistics.max_logit + jnp.log(jnp.maximum(statistics.exp_sum, 1e-30))
    return normaliser - statistics.positive_sum / jnp.maximum(statistics.positives, 1)


def _row_statistics(
    rows: _Side, columns: _Side, temperature: jax.Array, chunk: int
) -> _RowStatistics:
    """Computes the statistics of the rows over all columns, a chunk at a time."""
    count, zeros = len(rows.features), jnp.zeros(len(rows.features))
    statistics = _RowStatistics(
        jnp.full(count, 2 * _MASKED_LOGIT), zeros, zeros, zeros, zeros.astype(bool), zeros
    )

    def add(statistics, tile):
        return _add_tile(statistics, rows, tile, temperature), None

    if len(columns.features) <= chunk:
        return add(statistics, columns)[0]
    padding = -len(columns.features) % chunk  # zeros, which are not valid
    tiles = jax.tree.map(
        lambda x: jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1)).reshape(
            -1, chunk, *x.shape[1:]
        ),
        columns,
    )
    return jax.lax.scan(jax.checkpoint(add), statistics, tiles)[0]


def _add_tile(
    statistics: _RowStatistics, rows: _Side, columns: _Side, temperature: jax.Array
) -> _RowStatistics:
    cosines = jnp.matmul(rows.features, columns.features.T, precision=jax.lax.Precision.HIGHEST)
    pairs = rows.labels.valid[:, None] & columns.labels.valid
    logits = jnp.where(pairs, cosines / temperature, _MASKED_LOGIT)
    positives = pairs & (
        positive_pairs(rows.labels, columns.labels) | (rows.place[:, None] == columns.place)
    )
    best = jax.lax.stop_gradient(logits.max(axis=1))
    best_is_positive = jnp.take_along_axis(positives, jnp.argmax(logits, axis=1)[:, None], axis=1)[
        :, 0
    ]
    max_logit = jnp.maximum(statistics.max_logit, best)
    shrink = jnp.exp(statistics.max_logit - max_logit)
    exp_sum = jnp.exp(logits - max_logit[:, None]).sum(axis=1)
    sign = jnp.where(positives, 1.0, -1.0)
    softplus = jax.nn.softplus(-sign * (logits + SIGMOID_BIAS))
    return _RowStatistics(
        max_logit,
        statistics.exp_sum * shrink + exp_sum,
        statistics.positive_sum + jnp.where(positives, logits, 0.0).sum(axis=1),
        statistics.positives + positives.sum(axis=1),
        jnp.where(best > statistics.max_logit, best_is_positive, statistics.max_is_positive),
        statistics.softplus_sum + jnp.where(pairs, softplus, 0.0).sum(axis=1),
    )
