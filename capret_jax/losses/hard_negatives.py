"""Hard negatives of image-text matching (ALBEF, arXiv 2107.07651, sec. 3.2)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from capret_jax.distributed.mesh import BATCH_AXES
from capret_jax.losses import StepContext
from capret_jax.losses.contrastive import ContrastiveFeatures
from capret_jax.losses.pairs import PairLabels, positive_pairs

# Any tree of arrays with a common first axis.
Tree = Any
# Added to the softmax, so that every candidate can be drawn; the reference's value.
_FLOOR = 1e-5


class Negatives(NamedTuple):
    """A negative for each example.

    Attributes:
        states: a tree of (B, ...), the drawn examples' own.
        valid: (B,) bool, False where no negative could be drawn.
    """

    states: Tree
    valid: jax.Array


class _Candidates(NamedTuple):
    """Arrays of (B, ...) from which negatives are drawn."""

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
        similarity: (G, G) logits.
        positives: (G, G) bool, candidates that may not be drawn.
        key: a PRNG key.

    Returns:
        (G,) int32 the candidate, and (G,) bool, False where every candidate is a positive; the
        candidate then is the row itself.
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

    Negatives are drawn inside groups of `group_size` neighbours in the batch. Groups never cross
    devices, so no embedding moves; and they do not depend on the number of devices, so neither
    does the training curve.

    Args:
        context: mesh, key and part of the step.
        features: of the examples.
        labels: of the examples; invalid ones get no negative and are no negatives.
        states: a tree of (B, ...) arrays that make an image, and one of those that make a text.
        group_size: G, a divisor of the examples per device.

    Returns:
        The negative images, and the negative texts.
    """

    def in_group(group, candidates: _Candidates):
        image_key, text_key = jax.random.split(jax.random.fold_in(context.key, group))
        similarity = jax.lax.stop_gradient(
            candidates.image_features @ candidates.text_features.T / features.temperature
        )
        labels = candidates.labels
        own = jnp.eye(len(labels.identity), dtype=bool)
        excluded = positive_pairs(labels, labels) | own | ~labels.valid
        image, image_valid = draw_negatives(similarity.T, excluded, image_key)
        text, text_valid = draw_negatives(similarity, excluded, text_key)
        return (
            Negatives(_take(candidates.images, image), image_valid & labels.valid),
            Negatives(_take(candidates.texts, text), text_valid & labels.valid),
        )

    def on_device(part, candidates: _Candidates):
        groups = len(candidates.image_features) // group_size
        first = (jax.lax.axis_index(BATCH_AXES) * context.parts + part) * groups
        grouped = jax.tree.map(lambda x: x.reshape(groups, group_size, *x.shape[1:]), candidates)
        mined = jax.vmap(in_group)(first + jnp.arange(groups), grouped)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), mined)

    candidates = _Candidates(features.image, features.text, labels, *states)
    rows = PartitionSpec(BATCH_AXES)
    mine = jax.shard_map(
        on_device, mesh=context.mesh, in_specs=(PartitionSpec(), rows), out_specs=rows
    )
    return mine(jnp.asarray(context.part), candidates)


def _take(tree: Tree, rows: jax.Array) -> Tree:
    return jax.tree.map(lambda x: x[rows], tree)
