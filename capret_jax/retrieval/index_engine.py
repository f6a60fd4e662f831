"""Selects and builds the search engine of an index."""

import dataclasses

import jax
import numpy as np

from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.retrieval.engines import EXACT_BELOW, Engine, ExactEngine
from capret_jax.retrieval.sharded import ShardedEngine
from capret_jax.retrieval.tuning import TunedEngine, tune

KINDS = ("auto", "exact", "scann", "mesh")


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    """Settings of an index.

    Attributes:
        kind: "exact"; "scann"; "auto", which is exact search under 20,000 items and ScaNN from
            there on; or "mesh", exact search over all devices of this process
            (`sharded.ShardedEngine`).
        k: neighbours that a typical search requests, at which recall is measured.
        target_recall: share of exact search's neighbours that ScaNN is tuned to find.
        mesh_recall: with "mesh", a recall under 1 uses `lax.approx_max_k`, which is fast on TPUs.
        held_out: vectors of the index that serve as queries for tuning where no queries are given.
        seed: seed of the choice of these vectors.
    """

    kind: str = "auto"
    k: int = 20
    target_recall: float = 0.99
    mesh_recall: float = 1.0
    held_out: int = 512
    seed: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(f"index kind {self.kind!r} is none of {', '.join(KINDS)}.")
        for name in ("target_recall", "mesh_recall"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)} is not in (0, 1].")
        if self.k < 1 or self.held_out < 2:
            raise InputError("an index needs k >= 1 and held_out >= 2.")


def exact_engine(vectors: np.ndarray, config: IndexConfig) -> Engine:
    """Returns the engine that compares every vector: on the host, or over all devices ("mesh")."""
    if config.kind != "mesh":
        return ExactEngine(vectors)
    target = None if config.mesh_recall == 1 else config.mesh_recall
    return ShardedEngine(vectors, make_mesh(MeshConfig(), jax.local_devices()), target)


def build_engine(
    vectors: np.ndarray, config: IndexConfig, queries: np.ndarray | None
) -> TunedEngine:
    """Builds the engine that a config selects, and measures its recall.

    Args:
        vectors: (n, E) float32.
        config: settings of the index.
        queries: (Q, E) representative queries; `config.held_out` of the vectors when None.
    """
    small = len(vectors) < EXACT_BELOW
    if config.kind in ("exact", "mesh") or (config.kind == "auto" and small):
        return TunedEngine(exact_engine(vectors, config), 1.0, 0, 0.0)
    if queries is None:
        rng = np.random.default_rng(config.seed)
        count = min(config.held_out, len(vectors))
        queries = vectors[rng.choice(len(vectors), count, replace=False)]
    return tune(vectors, np.asarray(queries, np.float32), config.k, config.target_recall)
