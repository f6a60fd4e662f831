"""Memory of earlier batches' embeddings (XBM, cross-batch memory, arXiv 1912.06798, sec. 3.2)."""

import dataclasses

import jax
import jax.numpy as jnp

from capret_jax.data.batch import NO_IDENTITY


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """The last M examples, the newest first.

    Attributes:
        embeddings: (M, E) float32, L2-normalised; 0 in places that are not filled yet.
        identity: (M,) int32 class of each example, `NO_IDENTITY` where it has none.
        filled: (M,) bool, False for padding and for places that are not filled yet.
    """

    embeddings: jax.Array
    identity: jax.Array
    filled: jax.Array

    @classmethod
    def empty(cls, size: int, width: int) -> "Memory":
        """Makes a memory of M = `size` places for embeddings of width E."""
        identity = jnp.full(size, NO_IDENTITY, jnp.int32)
        return cls(jnp.zeros((size, width)), identity, jnp.zeros(size, bool))

    def pushed(self, embeddings: jax.Array, identity: jax.Array, valid: jax.Array) -> "Memory":
        """Returns the memory with a batch in front, without its oldest B examples.

        Args:
            embeddings: (B, E) float32, B <= M; no gradient flows through the memory.
            identity: (B,) int class of each example.
            valid: (B,) bool, False for padding.
        """
        new = Memory(jax.lax.stop_gradient(embeddings), identity, valid)
        return jax.tree.map(
            lambda front, kept: jnp.concatenate([front.astype(kept.dtype), kept[: -len(front)]]),
            new,
            self,
        )
