"""Supervised contrastive loss between images (SupCon, arXiv 2004.11362, eq. 2)."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from capret_jax.data.batch import NO_IDENTITY
from capret_jax.distributed.mesh import BATCH_AXES
from capret_jax.losses import Loss
from capret_jax.losses.memory import Memory

# Logit of the example itself and of padding: its exponential is 0.
_MASKED_LOGIT = -1e9


def supervised_contrastive_loss(
    embeddings: jax.Array,
    identity: jax.Array,
    valid: jax.Array,
    mesh: Mesh,
    *,
    temperature: float,
    memory: Memory | None = None,
) -> Loss:
    """Returns the mean over the examples that have a positive: another view of their identity.

    With two views of each identity, one from the shop and one from a consumer, it is the InfoNCE
    loss (arXiv 1807.03748) in both directions, against both sources. Examples without identity are
    negatives of all others. Each device compares its own examples with the gathered batch, and
    with the memory, whose examples are positives of their identity, too.

    Args:
        embeddings: (B, E) float32, L2-normalised.
        identity: (B,) int class of each example, `NO_IDENTITY` where it has none.
        valid: (B,) bool, False for padding, which is compared with nothing.
        mesh: mesh that the batch is sharded over.
        temperature: divisor of the cosines.
        memory: examples of earlier batches to compare with; None for none.

    Returns:
        The loss; its metric "accuracy" counts examples whose nearest other example is a positive.
    """

    def on_device(rows, columns):
        (embeddings, identity, valid, place), (others, names, real, places) = rows, columns
        logits = jnp.matmul(embeddings, others.T, precision=jax.lax.Precision.HIGHEST)
        compared = valid[:, None] & real & (place[:, None] != places)
        logits = jnp.where(compared, logits / temperature, _MASKED_LOGIT)
        positives = compared & (identity[:, None] == names) & (names != NO_IDENTITY)
        count = positives.sum(axis=1)
        similarity = jnp.where(positives, logits, 0.0).sum(axis=1) / jnp.maximum(count, 1)
        entropies = jax.nn.logsumexp(logits, axis=1) - similarity
        nearest = jnp.take_along_axis(positives, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
        return jnp.where(count > 0, entropies, 0.0), count > 0, nearest

    rows = embeddings, identity, valid, jnp.arange(len(identity))
    columns: tuple[jax.Array, ...] = rows
    if memory is not None:
        # No example of the batch is in the memory, so no place equals -1.
        past = memory.embeddings, memory.identity, memory.filled, jnp.full(len(memory.filled), -1)
        columns = tuple(jnp.concatenate(pair) for pair in zip(rows, past, strict=True))
    split, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
    entropies, counted, nearest = jax.shard_map(
        on_device, mesh=mesh, in_specs=(split, whole), out_specs=split
    )(rows, columns)
    total = counted.sum().astype(jnp.float32)
    hits = (nearest & counted).sum().astype(jnp.float32)
    return Loss(entropies.sum() / jnp.maximum(total, 1.0), total, {"accuracy": (hits, total)})
