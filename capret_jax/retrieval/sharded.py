"""Exact search over a gallery that is split over all devices of a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from capret_jax.distributed.mesh import AXES
from capret_jax.retrieval.engines import Neighbours

# Queries searched at once.
_CHUNK = 256


class ShardedEngine:
    """Every device compares the queries with its part of the gallery; their best are merged.

    Nothing but queries and k candidates a device travels, so a gallery may be as large as all
    devices' memory together.
    """

    def __init__(self, gallery: np.ndarray, mesh: Mesh, recall_target: float | None = None):
        """
        Args:
            gallery: (G, E) float32.
            mesh: of one process.
            recall_target: use `lax.approx_max_k` with this recall on each device, which is fast on
                TPUs; exact when None.
        """
        how = "exact" if recall_target is None else f"approximate, recall {recall_target}"
        self.kind = f"{how}, over {mesh.size} devices"
        self._size, self._mesh = len(gallery), mesh
        parts = mesh.size
        rows = np.full((len(gallery) + -len(gallery) % parts, gallery.shape[1]), 0, np.float32)
        rows[: len(gallery)] = gallery
        self._split = NamedSharding(mesh, PartitionSpec(AXES))
        self._gallery = jax.device_put(rows, self._split)
        self._search = jax.jit(self._merged, static_argnums=2)
        self._recall_target = recall_target

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """(Q, E) float32 -> the k best rows, or all there are if fewer."""
        k = min(k, self._size)
        chunks = [(np.empty((0, k), np.int32), np.empty((0, k), np.float32))]
        for start in range(0, len(queries), _CHUNK):
            chunk = queries[start : start + _CHUNK]
            filled = np.zeros((_CHUNK, queries.shape[1]), np.float32)  # one shape is compiled
            filled[: len(chunk)] = chunk
            rows, scores = jax.device_get(self._search(self._gallery, filled, k))
            chunks.append((rows[: len(chunk)], scores[: len(chunk)]))
        rows, scores = map(np.concatenate, zip(*chunks, strict=True))
        return Neighbours(rows.astype(np.int64), scores)

    def _merged(self, gallery: jax.Array, queries: jax.Array, k: int):
        def on_device(part, queries):
            first = jax.lax.axis_index(AXES) * len(part)
            # TPUs would multiply in bfloat16.
            scores = jnp.matmul(queries, part.T, precision=jax.lax.Precision.HIGHEST)
            scores = jnp.where(first + jnp.arange(len(part)) < self._size, scores, -jnp.inf)
            few = min(k, len(part))
            if self._recall_target is None:
                scores, rows = jax.lax.top_k(scores, few)
            else:
                scores, rows = jax.lax.approx_max_k(scores, few, recall_target=self._recall_target)
            return scores, rows + first

        spec, columns = PartitionSpec(AXES), PartitionSpec(None, AXES)
        scores, rows = jax.shard_map(
            on_device,
            mesh=self._mesh,
            in_specs=(spec, PartitionSpec()),
            out_specs=(columns, columns),
        )(gallery, queries)
        scores, order = jax.lax.top_k(scores, k)
        return jnp.take_along_axis(rows, order, axis=1), scores
