"""Search engines over gallery embeddings: exact, and ScaNN (arXiv 1908.10396).

All compare by inner product and share one signature: `search(queries, k) -> Neighbours`.
"""

import dataclasses
import pathlib
from collections.abc import Callable
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
# Inner products held at once by exact search: a few times 256 MB with what sorting takes.
_SCORES_AT_ONCE = 2**26
# From this many queries on, threads pay.
_PARALLEL_FROM = 16


class Neighbours(NamedTuple):
    """Neighbours of Q queries, best first.

    Attributes:
        rows: (Q, k) int64 rows of the gallery.
        scores: (Q, k) float32 inner products.
    """

    rows: np.ndarray
    scores: np.ndarray


class Engine(Protocol):
    """What can be searched; `kind` says in words what it is."""

    @property
    def kind(self) -> str: ...

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """(Q, E) float32 -> the k best rows, or all there are if fewer."""


class ExactEngine:
    """All inner products; of equal ones the lower row comes first."""

    kind = "exact"

    def __init__(self, gallery: np.ndarray):
        """`gallery`: (G, E) float32, which may be memory-mapped."""
        self._gallery = gallery

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """(Q, E) float32 -> the k best rows, or all there are if fewer."""
        k = min(k, len(self._gallery))
        if not len(queries) or not k:
            return Neighbours(
                np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
            )
        chunk = max(1, _SCORES_AT_ONCE // len(self._gallery))
        parts = [
            best(queries[i : i + chunk] @ self._gallery.T, k) for i in range(0, len(queries), chunk)
        ]
        return Neighbours(*map(np.concatenate, zip(*parts, strict=True)))


def best(scores: np.ndarray, k: int) -> Neighbours:
    """(Q, G) scores -> positions and scores of the k highest, in order; ties to the lower one."""
    if k >= scores.shape[1]:
        rows = np.argsort(-scores, axis=1, kind="stable")
    else:
        # Positions in ascending order first, so that the stable sort settles ties by them.
        candidates = np.sort(_highest(scores, k), axis=1)
        order = np.argsort(-np.take_along_axis(scores, candidates, axis=1), axis=1, kind="stable")
        rows = np.take_along_axis(candidates, order, axis=1)
    return Neighbours(rows, np.take_along_axis(scores, rows, axis=1))


def _highest(scores: np.ndarray, k: int) -> np.ndarray:
    """(Q, k) positions of the k highest, in any order; of equal ones the lower."""
    found = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    last = np.take_along_axis(scores, found, axis=1).min(axis=1)
    # Where more are equal to the last one than there is room for, partitioning takes any of them.
    for query in np.flatnonzero((scores >= last[:, None]).sum(axis=1) > k):
        above = np.flatnonzero(scores[query] > last[query])
        equal = np.flatnonzero(scores[query] == last[query])
        found[query] = np.concatenate([above, equal[: k - len(above)]])
    return found


@dataclasses.dataclass(frozen=True)
class ScannSettings:
    """One configuration of ScaNN.

    Attributes:
        hashing: asymmetric hashing with reordering; False compares with every vector.
        leaves: partitions of the tree; 0 for none.
        leaves_searched: of them, for each query.
        reorder: candidates per wanted neighbour whose exact inner product is computed.
    """

    hashing: bool = False
    leaves: int = 0
    leaves_searched: int = 0
    reorder: int = 10

    @property
    def kind(self) -> str:
        """In words."""
        if not self.hashing:
            return "ScaNN brute force"
        tree = f"tree ({self.leaves_searched} of {self.leaves} leaves), " if self.leaves else ""
        return f"ScaNN {tree}asymmetric hashing, {self.reorder} k reordered"


def settings_by_size(size: int) -> ScannSettings:
    """What ScaNN's guide says for so many vectors."""
    leaves = round(size**0.5) if size >= TREE_FROM else 0
    return ScannSettings(size >= EXACT_BELOW, leaves, max(1, leaves // 10) if leaves else 0)


class ScannEngine:
    """ScaNN. Settings of the search may change after building: `with_settings`."""

    def __init__(
        self,
        searcher: scann.scann_ops_pybind.ScannSearcher,
        size: int,
        k: int,
        settings: ScannSettings,
    ):
        """Use `build` or `load`."""
        self._searcher, self._size, self._k, self.settings = searcher, size, k, settings

    @classmethod
    def build(
        cls, gallery: np.ndarray, k: int, settings: ScannSettings | None = None
    ) -> "ScannEngine":
        """
        Args:
            gallery: (G, E) float32.
            k: neighbours that searches will usually ask for.
            settings: by the size of the gallery when None.
        """
        settings = settings or settings_by_size(len(gallery))
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
        """What `save` wrote of an index of so many vectors, built for k neighbours.

        Raises:
            InputError: ScaNN cannot read it.
        """
        try:
            searcher = scann.scann_ops_pybind.load_searcher(str(folder))
        except Exception as error:  # ScaNN raises RuntimeErrors and ValueErrors of many kinds
            raise InputError(
                f"{folder} is no ScaNN index that this version reads: {error}"
            ) from error
        return cls(searcher, size, min(k, size), settings)

    def save(self, folder: pathlib.Path) -> None:
        """Writes into an empty folder, with relative paths, so that it can be moved."""
        self._searcher.serialize(str(folder), relative_path=True)

    def with_settings(self, settings: ScannSettings) -> "ScannEngine":
        """The same structure, searched otherwise."""
        return ScannEngine(self._searcher, self._size, self._k, settings)

    @property
    def kind(self) -> str:
        """In words."""
        return self.settings.kind

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """(Q, E) float32 -> the k best rows, or all there are if fewer."""
        k, settings = min(k, self._size), self.settings
        search: Callable = self._searcher.search_batched
        if len(queries) >= _PARALLEL_FROM:
            search = self._searcher.search_batched_parallel
        limits = {"final_num_neighbors": k}
        if settings.hashing:
            limits["pre_reorder_num_neighbors"] = min(settings.reorder * k, self._size)
        if settings.leaves:
            # Tuned for `k` neighbours: more of them lie in more leaves.
            searched = -(-settings.leaves_searched * max(k, self._k) // self._k)
            limits["leaves_to_search"] = min(searched, settings.leaves)
        rows, scores = search(np.ascontiguousarray(queries), **limits)
        return Neighbours(rows.astype(np.int64), scores)
