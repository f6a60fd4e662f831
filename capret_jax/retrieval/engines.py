"""Search engines over gallery embeddings: exact, and ScaNN (arXiv 1908.10396).

All rank by inner product and share one signature: `search(queries, k) -> Neighbours`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import scann

from capret_jax.errors import InputError

# ScaNN's own rules of thumb (its docs/algorithms.md): brute force under 20 k vectors, asymmetric
# hashing under 100 k, above that a tree with about sqrt(n) leaves.
EXACT_BELOW = 20_000
TREE_FROM = 100_000
_DIMENSIONS_PER_BLOCK = 2
_ANISOTROPIC_THRESHOLD = 0.2
# Inner products that exact search holds in memory: 256 MB, and a few times that while sorting.
_MAX_SCORES_IN_MEMORY = 2**26
# ScaNN searches batches of at least this many queries faster with several threads.
_MIN_PARALLEL_QUERIES = 16


class Neighbours(NamedTuple):
    """Neighbours of Q queries, best first.

    Attributes:
        rows: (Q, k) int64 rows of the gallery.
        scores: (Q, k) float32 inner products.
    """

    rows: np.ndarray
    scores: np.ndarray

    @classmethod
    def concatenate(cls, parts: "Sequence[Neighbours]") -> "Neighbours":
        """Joins the neighbours of consecutive chunks of queries."""
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.scores for part in parts]),
        )


class Engine(Protocol):
    """Nearest-neighbour search in a fixed gallery."""

    @property
    def description(self) -> str:
        """The search method in words, such as "exact"."""

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """Returns the k nearest rows of each query, or all G rows where k > G.

        Args:
            queries: (Q, E) float32.
            k: neighbours per query.
        """


class ExactEngine:
    """Computes all inner products; the lower row comes first among equal ones."""

    description = "exact"

    def __init__(self, gallery: np.ndarray):
        """
        Args:
            gallery: (G, E) float32, which may be memory-mapped.
        """
        self._gallery = gallery

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """See `Engine.search`."""
        k = min(k, len(self._gallery))
        if not len(queries) or not k:
            return Neighbours(
                np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
            )
        chunk = max(1, _MAX_SCORES_IN_MEMORY // len(self._gallery))
        return Neighbours.concatenate(
            [
                top_k(queries[i : i + chunk] @ self._gallery.T, k)
                for i in range(0, len(queries), chunk)
            ]
        )


def top_k(scores: np.ndarray, k: int) -> Neighbours:
    """Returns the k highest scores of each row in descending order; ties go to the lower column.

    Args:
        scores: (Q, G) float32.
        k: columns to return; all G where k > G.
    """
    if k >= scores.shape[1]:
        rows = np.argsort(-scores, axis=1, kind="stable")
    else:
        # Positions in ascending order first, so that the stable sort settles ties by them.
        candidates = np.sort(_unsorted_top_k(scores, k), axis=1)
        order = np.argsort(-np.take_along_axis(scores, candidates, axis=1), axis=1, kind="stable")
        rows = np.take_along_axis(candidates, order, axis=1)
    return Neighbours(rows, np.take_along_axis(scores, rows, axis=1))


def _unsorted_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Returns (Q, k) columns of the k highest scores, in any order; ties go to the lower column."""
    columns = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    last = np.take_along_axis(scores, columns, axis=1).min(axis=1)
    # Partitioning picks any of the scores that tie for the last place: replace them by the lowest.
    for query in np.flatnonzero((scores >= last[:, None]).sum(axis=1) > k):
        above = np.flatnonzero(scores[query] > last[query])
        equal = np.flatnonzero(scores[query] == last[query])
        columns[query] = np.concatenate([above, equal[: k - len(above)]])
    return columns


@dataclasses.dataclass(frozen=True)
class ScannSettings:
    """One configuration of ScaNN.

    Attributes:
        hashing: use asymmetric hashing with reordering; brute force when False.
        leaves: partitions of the tree; 0 for no tree.
        leaves_searched: partitions that are searched per query.
        reorder: candidates, per neighbour requested, whose exact inner product is computed.
    """

    hashing: bool = False
    leaves: int = 0
    leaves_searched: int = 0
    reorder: int = 10

    @property
    def description(self) -> str:
        """The settings in words."""
        if not self.hashing:
            return "ScaNN brute force"
        tree = f"tree ({self.leaves_searched} of {self.leaves} leaves), " if self.leaves else ""
        return f"ScaNN {tree}asymmetric hashing, {self.reorder} k reordered"


def default_settings(size: int) -> ScannSettings:
    """Returns the settings that ScaNN's guide recommends for a gallery of `size` vectors."""
    leaves = round(size**0.5) if size >= TREE_FROM else 0
    return ScannSettings(size >= EXACT_BELOW, leaves, max(1, leaves // 10) if leaves else 0)


class ScannEngine:
    """ScaNN search; settings of the search can change after building (`with_settings`)."""

    def __init__(
        self,
        searcher: scann.scann_ops_pybind.ScannSearcher,
        size: int,
        k: int,
        settings: ScannSettings,
    ):
        """Use `build` or `load` instead."""
        self._searcher, self._size, self._k, self.settings = searcher, size, k, settings

    @classmethod
    def build(
        cls, gallery: np.ndarray, k: int, settings: ScannSettings | None = None
    ) -> "ScannEngine":
        """Builds the search structure.

        Args:
            gallery: (G, E) float32.
            k: neighbours that a typical search requests.
            settings: configuration of ScaNN; `default_settings` of the size when None.
        """
        settings = settings or default_settings(len(gallery))
        k = min(k, len(gallery))
        builder = scann.scann_ops_pybind.builder(np.ascontiguousarray(gallery), k, "dot_product")
        if settings.leaves:
            builder = builder.tree(settings.leaves, settings.leaves_searched)
        if settings.hashing:
            builder = builder.score_ah(
                _DIMENSIONS_PER_BLOCK, anisotropic_quantization_threshold=_ANISOTROPIC_THRESHOLD
            ).reorder(settings.reorder * k)
        else:
            builder = builder.score_brute_force()
        return cls(builder.build(), len(gallery), k, settings)

    @classmethod
    def load(
        cls, folder: pathlib.Path, size: int, k: int, settings: ScannSettings
    ) -> "ScannEngine":
        """Reads the structure that `save` wrote.

        Args:
            folder: folder of ScaNN's files.
            size: vectors of the gallery.
            k: neighbours that it was built for.
            settings: settings that it was built with.

        Raises:
            InputError: ScaNN cannot read the folder.
        """
        try:
            searcher = scann.scann_ops_pybind.load_searcher(str(folder))
        except Exception as error:  # ScaNN raises RuntimeErrors and ValueErrors of many kinds
            raise InputError(
                f"{folder} is not a ScaNN index that this version can read: {error}"
            ) from error
        return cls(searcher, size, min(k, size), settings)

    def save(self, folder: pathlib.Path) -> None:
        """Writes into an empty folder, with relative paths, so that the folder can be moved."""
        self._searcher.serialize(str(folder), relative_path=True)

    def with_settings(self, settings: ScannSettings) -> "ScannEngine":
        """Returns the same structure with other settings of the search."""
        return ScannEngine(self._searcher, self._size, self._k, settings)

    @property
    def description(self) -> str:
        """The settings in words."""
        return self.settings.description

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """See `Engine.search`."""
        k, settings = min(k, self._size), self.settings
        search: Callable = self._searcher.search_batched
        if len(queries) >= _MIN_PARALLEL_QUERIES:
            search = self._searcher.search_batched_parallel
        limits = {"final_num_neighbors": k}
        if settings.hashing:
            limits["pre_reorder_num_neighbors"] = min(settings.reorder * k, self._size)
        if settings.leaves:
            # The leaves were tuned for `self._k` neighbours: more neighbours lie in more leaves.
            searched = -(-settings.leaves_searched * max(k, self._k) // self._k)
            limits["leaves_to_search"] = min(searched, settings.leaves)
        rows, scores = search(np.ascontiguousarray(queries), **limits)
        return Neighbours(rows.astype(np.int64), scores)
