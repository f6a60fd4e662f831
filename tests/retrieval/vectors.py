"""Random unit vectors for tests of search."""

import numpy as np


def unit_vectors(count: int, seed: int, width: int = 16) -> np.ndarray:
    """Draws (count, width) float32, uniform on the sphere."""
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(count: int, seed: int, width: int = 16, clusters: int = 40) -> np.ndarray:
    """Draws (count, width) float32 around cluster centres that do not depend on the seed."""
    centres = unit_vectors(clusters, 1234, width)
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, clusters, count)] + 0.3 * unit_vectors(count, seed, width)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
