"""Distillation of a teacher's similarities between images (CompRess, arXiv 2010.14713, eq. 1)."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from capret_jax.distributed.mesh import BATCH_AXES
from capret_jax.losses import Loss

_MASKED_LOGIT = -1e9


def distillation_loss(
    embeddings: jax.Array, teacher: jax.Array, valid: jax.Array, mesh: Mesh, temperature: float
) -> Loss:
    """Returns the mean KL divergence of the teacher's neighbourhoods from the student's.

    The neighbourhood of an example is the softmax of its cosines to the other examples of the
    batch. So the widths of teacher and student may differ. Each device compares its own examples
    with the gathered batch.

    Args:
        embeddings: (B, E) float32, L2-normalised.
        teacher: (B, F) float32 embeddings of the same items by the teacher, of any norm.
        valid: (B,) bool, False for examples that do not count and are compared with nothing.
        mesh: mesh that the batch is sharded over.
        temperature: divisor of the cosines of both.

    Returns:
        The loss; its metric "agreement" counts examples whose nearest neighbour is the teacher's.
    """
    teacher = teacher / jnp.linalg.norm(teacher, axis=1, keepdims=True)

    def on_device(rows, columns):
        (student, wise, counts, place), (others, wise_others, real, places) = rows, columns
        compared = counts[:, None] & real & (place[:, None] != places)

        def log_neighbourhood(a, b):
            logits = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST) / temperature
            return jax.nn.log_softmax(jnp.where(compared, logits, _MASKED_LOGIT), axis=1)

        ours, theirs = log_neighbourhood(student, others), log_neighbourhood(wise, wise_others)
        divergence = jnp.where(compared, jnp.exp(theirs) * (theirs - ours), 0.0).sum(axis=1)
        counted = compared.any(axis=1)
        return divergence, counted, counted & (ours.argmax(axis=1) == theirs.argmax(axis=1))

    columns = embeddings, jax.lax.stop_gradient(teacher), valid, jnp.arange(len(valid))
    split, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
    divergence, counted, agreed = jax.shard_map(
        on_device, mesh=mesh, in_specs=(split, whole), out_specs=split
    )(columns, columns)
    count = counted.sum().astype(jnp.float32)
    metrics = {"agreement": (agreed.sum().astype(jnp.float32), count)}
    return Loss(divergence.sum() / jnp.maximum(count, 1.0), count, metrics)
