"""Image-text matching (ITM; ALBEF, arXiv 2107.07651, sec. 3.2) and its hard negatives."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from capret_jax.distributed.mesh import BATCH_AXES
from capret_jax.losses import Loss
from capret_jax.losses.contrastive import positive_pairs

# Any tree of arrays with a common first axis.
Tree = Any
# Added to the softmax, so that no candidate is out of reach; the reference's value.
_FLOOR = 1e-5


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
    mesh: Mesh,
    group_size: int,
    key: jax.Array,
    image_features: jax.Array,
    text_features: jax.Array,
    temperature: jax.Array,
    identity: jax.Array,
    caption_id: jax.Array,
    valid: jax.Array,
    images: Tree,
    texts: Tree,
    part: jax.Array | int = 0,
    parts: int = 1,
) -> tuple[tuple[Tree, jax.Array], tuple[Tree, jax.Array]]:
    """For each text a hard-negative image and for each image a hard-negative text.

    Negatives are drawn inside groups of `group_size` neighbours in the batch. Groups never cross
    devices, so no embedding moves; and they do not depend on the number of devices, so neither
    does the training curve.

    Args:
        mesh: the batch's mesh.
        group_size: G, a divisor of the examples per device.
        key: the step's key.
        image_features, text_features: (B, E).
        temperature: ().
        identity, caption_id: (B,) int.
        valid: (B,) bool; other examples get no negative and are nobody's.
        images: what makes an image, a tree of (B, ...): its states, and their mask.
        texts: what makes a text, likewise.
        part, parts: which one of how many of the global batch this is, when it is accumulated.

    Returns:
        For each example a negative image and whether it is one, (B,) bool; then a negative text
        and whether it is one.
    """

    def in_group(group, image_features, text_features, identity, caption_id, valid, images, texts):
        image_key, text_key = jax.random.split(jax.random.fold_in(key, group))
        similarity = jax.lax.stop_gradient(image_features @ text_features.T / temperature)
        own = jnp.eye(len(identity), dtype=bool)
        excluded = positive_pairs(identity, caption_id) | own | ~valid
        image, image_valid = draw_negatives(similarity.T, excluded, image_key)
        text, text_valid = draw_negatives(similarity, excluded, text_key)
        return (
            (jax.tree.map(lambda x: x[image], images), image_valid & valid),
            (jax.tree.map(lambda x: x[text], texts), text_valid & valid),
        )

    def on_device(part, *arrays):
        groups = len(arrays[0]) // group_size
        first = (jax.lax.axis_index(BATCH_AXES) * parts + part) * groups
        grouped = jax.tree.map(lambda x: x.reshape(groups, group_size, *x.shape[1:]), arrays)
        mined = jax.vmap(in_group)(first + jnp.arange(groups), *grouped)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), mined)

    arrays = (image_features, text_features, identity, caption_id, valid, images, texts)
    spec = PartitionSpec(BATCH_AXES)
    in_specs = (PartitionSpec(), *[spec] * len(arrays))
    mine = jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=spec)
    return mine(jnp.asarray(part), *arrays)


def matching_loss(logits: jax.Array, labels: jax.Array, valid: jax.Array) -> Loss:
    """Cross entropy of match (1) against no match (0) over the valid pairs.

    Args:
        logits: (..., 2).
        labels: (...) int, 1 for a match.
        valid: (...) bool; other pairs do not count. With none at all the value is 0.
    """
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    count = valid.sum().astype(jnp.float32)
    hits = ((logits.argmax(-1) == labels) & valid).sum().astype(jnp.float32)
    value = jnp.where(valid, entropies, 0.0).sum() / jnp.maximum(count, 1.0)
    return Loss(value, count, {"accuracy": (hits, count)})
