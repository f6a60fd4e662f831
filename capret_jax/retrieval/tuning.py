"""ScaNN tuned to a wanted recall: as fast as it can be at that, on queries held out for it."""

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
    settings_by_size,
)
from capret_jax.retrieval.metrics import recall

T = TypeVar("T")
# Tried in this order, the cheaper first: shares of the leaves, and candidates reordered per
# neighbour wanted.
_LEAF_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
_REORDERS = (2, 5, 10, 20, 50, 100, 200)


class Tuned(NamedTuple):
    """An engine, and what is known of it.

    Attributes:
        engine: meets the target, or is exact.
        recall: of exact search's k neighbours on queries that tuning did not see.
        queries: how many these were.
        seconds: per such query, in one batch.
    """

    engine: Engine
    recall: float
    queries: int
    seconds: float


def tune(gallery: np.ndarray, queries: np.ndarray, k: int, target: float) -> Tuned:
    """The fastest of ScaNN's settings for this size with the wanted recall.

    Begins with what ScaNN's guide says for the size. A tree that does not reach the target with
    less than half of its leaves makes room for hashing alone, and that for exact search.

    Args:
        gallery: (G, E) float32.
        queries: (Q, E) float32, like those to come; half of them choose, the others report.
        k: neighbours wanted.
        target: recall@k, in (0, 1].
    """
    k = min(k, len(gallery))
    chosen, reported = queries[::2], queries[1::2]
    exact = ExactEngine(gallery)
    truth = exact.search(chosen, k)
    for engine in _structures(gallery, k):
        fastest = _fastest(engine, chosen, truth, k, target)
        if fastest:
            return _report(fastest, exact, reported, k)
    return _report(exact, exact, reported, k)


def _structures(gallery: np.ndarray, k: int) -> Iterator[ScannEngine]:
    settings = settings_by_size(len(gallery))
    if settings.leaves:
        yield ScannEngine.build(gallery, k, settings)
    yield ScannEngine.build(gallery, k, dataclasses.replace(settings, leaves=0, leaves_searched=0))


def _fastest(
    engine: ScannEngine, queries: np.ndarray, truth: Neighbours, k: int, target: float
) -> ScannEngine | None:
    met = []
    for candidates in _ladders(engine):
        for candidate in candidates:
            found, seconds = timed(candidate.search, queries, k)
            if recall(found.rows, truth.rows) >= target:
                met.append((seconds, candidate))
                break  # further up the ladder it only gets slower
    return min(met, key=lambda pair: pair[0])[1] if met else None


def _ladders(engine: ScannEngine) -> Iterator[list[ScannEngine]]:
    """For each number of leaves to search, engines by candidates reordered."""
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


def _report(engine: Engine, exact: ExactEngine, queries: np.ndarray, k: int) -> Tuned:
    found, seconds = timed(engine.search, queries, k)
    truth = exact.search(queries, k)
    share = recall(found.rows, truth.rows) if len(queries) else 1.0
    return Tuned(engine, share, len(queries), seconds / max(1, len(queries)))


def timed(function: Callable[..., T], *args) -> tuple[T, float]:
    """What `function(*args)` returns, and the seconds it took."""
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start
