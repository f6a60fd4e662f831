"""Exact search over a gallery that is split over all devices of a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from capret_jax.distributed.mesh import AXES
from capret_jax.retrieval.engines import Neighbours

# Queries per call of the compiled search.
_CHUNK = 256


class ShardedEngine:
    """Searches each device's shard of the gallery and merges the devices' top k.

    Only queries and k candidates per device are transferred, so a gallery may be as large as the
    memory of all devices together.
    """

    def __init__(self, gallery: np.ndarray, mesh: Mesh, recall_target: float | None = None):
        """
        Args:
            gallery: (G, E) float32.
            mesh: mesh of devices of this process.
            recall_target: recall of `lax.approx_max_k` on each device, which is fast on TPUs; exact
                search when None.
        """
        method = "exact" if recall_target is None else f"approximate, recall {recall_target}"
        self.description = f"{method}, over {mesh.size} devices"
        self._size, self._mesh = len(gallery), mesh
        padding = -len(gallery) % mesh.size
        rows = np.zeros((len(gallery) + padding, gallery.shape[1]), np.float32)
        rows[: len(gallery)] = gallery
        self._gallery = jax.device_put(rows, NamedSharding(mesh, PartitionSpec(AXES)))
        self._search = jax.jit(self._search_shards, static_argnums=2)
        self._recall_target = recall_target

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """See `engines.Engine.search`."""
        k = min(k, self._size)
        parts = [Neighbours(np.empty((0, k), np.int64), np.empty((0, k), np.float32))]
        for start in range(0, len(queries), _CHUNK):
            chunk = queries[start : start + _CHUNK]
            padded = np.zeros((_CHUNK, queries.shape[1]), np.float32)  # one shape is compiled
            padded[: len(chunk)] = chunk
            rows, scores = jax.device_get(self._search(self._gallery, padded, k))
            parts.append(Neighbours(rows[: len(chunk)].astype(np.int64), scores[: len(chunk)]))
        return Neighbours.concatenate(parts)

    def _search_shards(self, gallery: jax.Array, queries: jax.Array, k: int):
        def search_shard(shard, queries):
            offset = jax.lax.axis_index(AXES) * len(shard)
            # TPUs would multiply in bfloat16.
            scores = jnp.matmul(queries, shard.T, precision=jax.lax.Precision.HIGHEST)
            scores = jnp.where(offset + jnp.arange(len(shard)) < self._size, scores, -jnp.inf)
            shard_k = min(k, len(shard))
            if self._recall_target is None:
                scores, rows = jax.lax.top_k(scores, shard_k)
            else:
                scores, rows = jax.lax.approx_max_k(
                    scores, shard_k, recall_target=self._recall_target
                )
            return scores, rows + offset

        rows_spec, columns_spec = PartitionSpec(AXES), PartitionSpec(None, AXES)
        scores, rows = jax.shard_map(
            search_shard,
            mesh=self._mesh,
            in_specs=(rows_spec, PartitionSpec()),
            out_specs=(columns_spec, columns_spec),
        )(gallery, queries)
        scores, order = jax.lax.top_k(scores, k)
        return jnp.take_along_axis(rows, order, axis=1), scores
