"""Nearest-neighbour search over gallery embeddings: exact, and ScaNN (arXiv 1908.10396)."""

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import scann

# ScaNN's own rules of thumb (its docs/algorithms.md): brute force under 20 k vectors, asymmetric
# hashing under 100 k, above that a tree with about sqrt(n) leaves.
_EXACT_BELOW = 20_000
_TREE_FROM = 100_000
_DIMENSIONS_PER_BLOCK = 2
_ANISOTROPIC_THRESHOLD = 0.2
# Candidates whose exact distance is computed, and leaves searched, as multiples of what is asked.
_REORDER_FACTOR = 10
_LEAVES_SEARCHED = 0.1

# Queries searched at once, which bounds the memory of exact search.
_CHUNK = 512

T = TypeVar("T")


class ExactIndex:
    """All inner products; of equal ones the lower row comes first."""

    def __init__(self, gallery: np.ndarray):
        """`gallery`: (G, E) float32."""
        self._gallery = gallery

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """(Q, E) float32 -> (Q, k) int64 rows of the gallery, best first."""
        chunks = [queries[i : i + _CHUNK] for i in range(0, len(queries), _CHUNK)]
        return np.concatenate([_best(chunk @ self._gallery.T, k) for chunk in chunks])


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """(Q, G) -> (Q, k) positions of the highest, in order; ties to the lower one."""
    if k == scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")
    # Positions in ascending order first, so that the stable sort settles ties by them.
    candidates = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(scores, candidates, axis=1), axis=1, kind="stable")
    return np.take_along_axis(candidates, order, axis=1)


class ScannIndex:
    """ScaNN, configured by the size of the gallery; `kind` says how."""

    def __init__(self, gallery: np.ndarray, k: int):
        """
        Args:
            gallery: (G, E) float32.
            k: neighbours that searches will ask for.
        """
        size = len(gallery)
        k = min(k, size)
        builder = scann.scann_ops_pybind.builder(gallery, k, "dot_product")
        if size < _EXACT_BELOW:
            self.kind = "ScaNN brute force"
            builder = builder.score_brute_force()
        else:
            self.kind = "ScaNN asymmetric hashing with reordering"
            if size >= _TREE_FROM:
                self.kind = "ScaNN tree, asymmetric hashing with reordering"
                leaves = round(size**0.5)
                builder = builder.tree(leaves, max(1, round(_LEAVES_SEARCHED * leaves)))
            builder = builder.score_ah(
                _DIMENSIONS_PER_BLOCK, anisotropic_quantization_threshold=_ANISOTROPIC_THRESHOLD
            ).reorder(_REORDER_FACTOR * k)
        self._searcher = builder.build()
        self._size = size

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """(Q, E) float32 -> (Q, k) int64 rows of the gallery, best first."""
        rows, _ = self._searcher.search_batched(queries, min(k, self._size))
        return rows.astype(np.int64)


def timed(function: Callable[..., T], *args) -> tuple[T, float]:
    """What `function(*args)` returns, and the seconds it took."""
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start
