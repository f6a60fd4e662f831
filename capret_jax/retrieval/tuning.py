"""Tunes ScaNN: the fastest settings that reach a target recall on held-out queries."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from capret_jax.retrieval.engines import (
    Engine,
    ExactEngine,
    Neighbours,
    ScannEngine,
    default_settings,
)
from capret_jax.retrieval.metrics import recall

T = TypeVar("T")
# Shares of the leaves to search, and candidates to reorder per neighbour: the cheaper ones are
# tried first.
_LEAF_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
_REORDERS = (2, 5, 10, 20, 50, 100, 200)


class TunedEngine(NamedTuple):
    """A search engine and its measured quality.

    Attributes:
        engine: an engine that reaches the target recall, or exact search.
        recall: share of exact search's k neighbours that it finds, on queries not used for tuning.
        queries: number of these queries.
        seconds: search time per query, in one batch.
    """

    engine: Engine
    recall: float
    queries: int
    seconds: float


def tune(gallery: np.ndarray, queries: np.ndarray, k: int, target: float) -> TunedEngine:
    """Returns the fastest ScaNN engine that reaches a target recall.

    The structure is the one that ScaNN's guide recommends for the size. Where a tree does not reach
    the target with less than half of its leaves, hashing without a tree is tried, and then exact
    search is used.

    Args:
        gallery: (G, E) float32.
        queries: (Q, E) float32, representative queries; one half selects the settings and the other
            half measures the recall that is reported.
        k: neighbours per query.
        target: recall@k, in (0, 1].
    """
    k = min(k, len(gallery))
    tuning_queries, test_queries = queries[::2], queries[1::2]
    exact = ExactEngine(gallery)
    expected = exact.search(tuning_queries, k)
    for engine in _structures(gallery, k):
        fastest = _fastest(engine, tuning_queries, expected, target)
        if fastest:
            return _measure(fastest, exact, test_queries, k)
    return _measure(exact, exact, test_queries, k)


def _structures(gallery: np.ndarray, k: int) -> Iterator[ScannEngine]:
    settings = default_settings(len(gallery))
    if settings.leaves:
        yield ScannEngine.build(gallery, k, settings)
    yield ScannEngine.build(gallery, k, dataclasses.replace(settings, leaves=0, leaves_searched=0))


def _fastest(
    engine: ScannEngine, queries: np.ndarray, expected: Neighbours, target: float
) -> ScannEngine | None:
    """Returns the fastest variant that reaches the target, None where none does.

    Args:
        engine: the structure to search.
        queries: (Q, E) float32.
        expected: neighbours by exact search, k per query.
        target: recall@k.
    """
    k = expected.rows.shape[1]
    candidates = []
    for variants in _variants_by_leaves(engine):
        for variant in variants:
            neighbours, seconds = timed(variant.search, queries, k)
            if recall(neighbours.rows, expected.rows) >= target:
                candidates.append((seconds, variant))
                break  # variants that reorder more are slower
    return min(candidates, key=lambda pair: pair[0])[1] if candidates else None


def _variants_by_leaves(engine: ScannEngine) -> Iterator[list[ScannEngine]]:
    """Yields, for each number of leaves to search, variants by ascending candidates reordered."""
    settings = engine.settings
    reorders = _REORDERS if settings.hashing else (settings.reorder,)
    shares = _LEAF_SHARES if settings.leaves else (0.0,)
    for searched in dict.fromkeys(round(share * settings.leaves) for share in shares):
        yield [
            engine.with_settings(
                dataclasses.replace(settings, leaves_searched=searched, reorder=reorder)
            )
            for reorder in reorders
            if searched or not settings.leaves
        ]


def _measure(engine: Engine, exact: ExactEngine, queries: np.ndarray, k: int) -> TunedEngine:
    neighbours, seconds = timed(engine.search, queries, k)
    expected = exact.search(queries, k)
    share = recall(neighbours.rows, expected.rows) if len(queries) else 1.0
    return TunedEngine(engine, share, len(queries), seconds / max(1, len(queries)))


def timed(function: Callable[..., T], *args) -> tuple[T, float]:
    """Calls `function(*args)`; returns its result and the seconds that the call took."""
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start
