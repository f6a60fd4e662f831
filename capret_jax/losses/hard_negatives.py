"""Hard negatives of image-text matching (ALBEF, arXiv 2107.07651, sec. 3.2)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from capret_jax.distributed.mesh import BATCH_AXES
from capret_jax.losses import StepContext
from capret_jax.losses.contrastive import ContrastiveFeatures
from capret_jax.losses.pairs import PairLabels, positive_pairs

# A tree of arrays with a common first axis.
Tree = Any
# Added to the softmax, so that every candidate can be drawn; the value of X2-VLM's code.
_FLOOR = 1e-5


class Negatives(NamedTuple):
    """One negative for each example.

    Attributes:
        states: a tree of (B, ...) arrays, the states of the drawn examples.
        valid: (B,) bool, False where no negative could be drawn.
    """

    states: Tree
    valid: jax.Array


class _Candidates(NamedTuple):
    """(B, ...) features, labels and states of the examples that negatives are drawn from."""

    image_features: jax.Array
    text_features: jax.Array
    labels: PairLabels
    images: Tree
    texts: Tree


def draw_negatives(
    similarity: jax.Array, positives: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draws one candidate per row from softmax(similarity) + 1e-5, positives excluded.

    Args:
        similarity: (G, G) float32 logits.
        positives: (G, G) bool, True for candidates that may not be drawn.
        key: a PRNG key.

    Returns:
        (G,) int32 drawn candidates, and (G,) bool, False where every candidate is a positive; the
        drawn candidate is then the row itself.
    """
    weights = jnp.where(positives, 0.0, jax.nn.softmax(similarity, axis=1) + _FLOOR)
    valid = ~positives.all(axis=1)
    drawn = jax.random.categorical(key, jnp.log(weights), axis=1)
    return jnp.where(valid, drawn, jnp.arange(len(drawn))), valid


def mine_hard_negatives(
    context: StepContext,
    features: ContrastiveFeatures,
    labels: PairLabels,
    states: tuple[Tree, Tree],
    group_size: int,
) -> tuple[Negatives, Negatives]:
    """Draws a hard-negative image for each text and a hard-negative text for each image.

    Negatives are drawn within groups of `group_size` neighbours in the batch. Groups do not cross
    devices, so no states are exchanged. Groups do not depend on the number of devices either, so
    the training curve does not.

    Args:
        context: mesh, key and part of the step.
        features: features by whose similarity negatives are drawn.
        labels: labels of the examples; invalid ones get no negative and are never drawn.
        states: a tree of (B, ...) states of the images, and one of the texts.
        group_size: G, a divisor of the number of examples per device; 0 for all of them.

    Returns:
        A negative image for each text, and a negative text for each image.
    """

    def in_group(group, candidates: _Candidates):
        image_key, text_key = jax.random.split(jax.random.fold_in(context.key, group))
        products = jnp.matmul(
            candidates.image_features,
            candidates.text_features.T,
            precision=jax.lax.Precision.HIGHEST,
        )
        similarity = jax.lax.stop_gradient(products / features.temperature)
        labels = candidates.labels
        diagonal = jnp.eye(len(labels.identity), dtype=bool)
        excluded = positive_pairs(labels, labels) | diagonal | ~labels.valid
        image, image_valid = draw_negatives(similarity.T, excluded, image_key)
        text, text_valid = draw_negatives(similarity, excluded, text_key)
        return (
            Negatives(_take(candidates.images, image), image_valid & labels.valid),
            Negatives(_take(candidates.texts, text), text_valid & labels.valid),
        )

    def on_device(part, candidates: _Candidates):
        size = group_size or len(candidates.image_features)
        groups = len(candidates.image_features) // size
        first = (jax.lax.axis_index(BATCH_AXES) * context.parts + part) * groups
        grouped = jax.tree.map(lambda x: x.reshape(groups, size, *x.shape[1:]), candidates)
        mined = jax.vmap(in_group)(first + jnp.arange(groups), grouped)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), mined)

    candidates = _Candidates(features.image, features.text, labels, *states)
    rows = PartitionSpec(BATCH_AXES)
    sharded = jax.shard_map(
        on_device, mesh=context.mesh, in_specs=(PartitionSpec(), rows), out_specs=rows
    )
    return sharded(jnp.asarray(context.part), candidates)


def _take(tree: Tree, rows: jax.Array) -> Tree:
    return jax.tree.map(lambda x: x[rows], tree)
