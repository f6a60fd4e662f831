"""Unit vectors to search."""

import numpy as np


def unit_vectors(count: int, seed: int, width: int = 16) -> np.ndarray:
    """(count, width) float32 in all directions alike."""
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(count: int, seed: int, width: int = 16, clusters: int = 40) -> np.ndarray:
    """(count, width) float32 around centres that are the same for every seed."""
    centres = unit_vectors(clusters, 1234, width)
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, clusters, count)] + 0.3 * unit_vectors(count, seed, width)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
