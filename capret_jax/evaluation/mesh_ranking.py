"""Exact ranking of a gallery on a mesh, with the queries split over all devices.

Nothing is sorted. The average precision of a query depends only on the ranks of its relevant items,
of which it has few, and the rank of an item is the number of gallery items before it.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from capret_jax.distributed.mesh import AXES, replicated
from capret_jax.retrieval.metrics import average_precision_of_ranks

# Scores that a device computes at a time: 32 MB, so that caches of CPUs help to count ranks.
_SCORES_PER_CALL = 2**23
# Queries of a device in one call; more would not make it faster.
_QUERIES_PER_CALL = 128


class LabelledEmbeddings(NamedTuple):
    """Embeddings of n items with identities.

    Attributes:
        vectors: (n, E) float32.
        identities: (n,) int64.
    """

    vectors: np.ndarray
    identities: np.ndarray


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Rankings of the gallery for Q queries.

    Attributes:
        neighbours: (Q, K) int64 positions in the gallery, best first.
        scores: (Q, K) float32 inner products of the neighbours with the query.
        precision: (Q,) float64 average precision over the whole gallery.
        first: (Q,) int64 rank of the first relevant item, from 0; G without one.
    """

    neighbours: np.ndarray
    scores: np.ndarray
    precision: np.ndarray
    first: np.ndarray


def rank_on_mesh(
    mesh: Mesh,
    queries: LabelledEmbeddings,
    gallery: LabelledEmbeddings,
    k: int,
    relevant_items: np.ndarray | None = None,
) -> Ranking:
    """Ranks the gallery for every query by inner products, the lower row first among equal ones.

    Every process of the mesh has to call it, with the same arguments. Each device has the whole
    gallery and an equal share of the queries; all processes get the whole result.

    Args:
        mesh: mesh of all devices of all processes.
        queries: embeddings of the Q queries.
        gallery: embeddings of the G gallery items; those with the query's identity are relevant.
        k: number of neighbours to return; all G where k > G.
        relevant_items: (Q,) int numbers of relevant items, see `metrics.average_precision`.

    Returns:
        The ranking, with min(k, G) neighbours. NaN embeddings come last.
    """
    relevant = _RelevantRows(queries.identities, gallery.identities)
    size, count = len(gallery.vectors), len(queries.vectors)
    k = min(k, size)
    ranking = Ranking(
        np.empty((count, k), np.int64),
        np.empty((count, k), np.float32),
        np.empty(count),
        np.empty(count, np.int64),
    )
    gallery_on_mesh = _place(gallery.vectors, replicated(mesh))
    per_device = max(1, min(_QUERIES_PER_CALL, _SCORES_PER_CALL // size))
    step = per_device * mesh.size
    # Queries with as many relevant items together, as each device counts up to its largest number.
    order = np.argsort(relevant.counts, kind="stable")
    starts = range(0, count, step)
    quiet = len(starts) < 2 or jax.process_index() > 0
    for start in tqdm(starts, "ranking", disable=quiet, leave=False):
        rows = order[start : start + step]
        padded = np.resize(rows, step)  # one shape is compiled
        by_query = NamedSharding(mesh, PartitionSpec(AXES))
        arguments = _place(queries.vectors[padded], by_query), gallery_on_mesh
        table = _place(relevant.table(padded), by_query)
        result = _rank_chunk(*arguments, table, mesh=mesh, k=k)
        scores, neighbours, ranks = (x[: len(rows)] for x in jax.device_get(result))
        expected = relevant.counts[rows] if relevant_items is None else relevant_items[rows]
        ranking.neighbours[rows], ranking.scores[rows] = neighbours, scores
        ranking.precision[rows] = average_precision_of_ranks(ranks, size, expected)
        ranking.first[rows] = ranks.min(axis=1)
    return ranking


class _RelevantRows:
    """Gallery rows of each query's relevant items.

    Attributes:
        counts: (Q,) int64 number of relevant items.
    """

    def __init__(self, queries: np.ndarray, gallery: np.ndarray):
        """
        Args:
            queries: (Q,) int64 identities.
            gallery: (G,) int64 identities.
        """
        self._rows = np.argsort(gallery, kind="stable")
        self._start, end = (
            np.searchsorted(gallery[self._rows], queries, side) for side in ("left", "right")
        )
        self.counts = end - self._start
        # The same width for all queries, since each width is compiled.
        self._places = np.arange(max(self.counts.max(initial=0), 1))

    def table(self, queries: np.ndarray) -> np.ndarray:
        """Returns (n, R) int32 gallery rows of n queries, with G as padding at the end."""
        places = self._start[queries, None] + self._places
        rows = self._rows[places.clip(max=len(self._rows) - 1)]
        has_item = self._places < self.counts[queries, None]
        return np.where(has_item, rows, len(self._rows)).astype(np.int32)


def _place(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    # `device_put` would compare the array between all processes.
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


@functools.partial(jax.jit, static_argnames=("mesh", "k"))
def _rank_chunk(queries, gallery, relevant, *, mesh: Mesh, k: int):
    """Returns (Q, k) scores and rows, and (Q, R) ranks of `relevant`, on all devices."""
    by_query, whole = PartitionSpec(AXES), PartitionSpec()
    results = jax.shard_map(
        functools.partial(_rank_shard, k=k),
        mesh=mesh,
        in_specs=(by_query, whole, by_query),
        out_specs=(by_query,) * 3,
    )(queries, gallery, relevant)
    return jax.lax.with_sharding_constraint(results, replicated(mesh))


def _rank_shard(queries, gallery, relevant, *, k: int):
    # TPUs would multiply in bfloat16.
    scores = jnp.matmul(queries, gallery.T, precision=jax.lax.Precision.HIGHEST)
    # `top_k` puts NaN first, and -0 after 0; a sort by value puts NaN last, and takes -0 for 0.
    scores = jnp.where(scores == 0, 0, jnp.where(jnp.isnan(scores), -jnp.inf, scores))
    best, rows = jax.lax.top_k(scores, k)
    return best, rows, _ranks(scores, relevant)


def _ranks(scores: jax.Array, items: jax.Array) -> jax.Array:
    """Returns the (Q, R) int32 ranks, from 0, of items among all G; G for padding.

    Args:
        scores: (Q, G) float32 scores of all items, without NaN.
        items: (Q, R) int32 items of each query; G for padding, which is at the end.
    """
    size = scores.shape[1]
    own = jnp.take_along_axis(scores, jnp.minimum(items, size - 1), axis=1)
    columns = jnp.arange(size)

    def count(place, ranks):
        item, score = (jax.lax.dynamic_slice_in_dim(x, place, 1, axis=1) for x in (items, own))
        before = (scores > score) | ((scores == score) & (columns < item))
        number = before.sum(axis=1, keepdims=True, dtype=jnp.int32)
        return jax.lax.dynamic_update_slice_in_dim(ranks, number, place, axis=1)

    most = (items < size).sum(axis=1).max()
    ranks = jax.lax.fori_loop(0, most, count, jnp.zeros_like(items))
    return jnp.where(items < size, ranks, size)
