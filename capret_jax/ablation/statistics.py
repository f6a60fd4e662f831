"""What a difference between arms is worth: paired bootstrap over queries, seeds as repeats.

Queries of one identity fail and succeed together, so identities are drawn, with all their queries;
seeds are drawn, too (a crossed bootstrap; Owen, Annals of Applied Statistics 1(2), 2007).
"""

from typing import NamedTuple

import numpy as np

_RESAMPLES = 10_000
_CHUNK = 1000


class Interval(NamedTuple):
    """A mean and its bootstrap interval.

    Attributes:
        mean: of all queries and seeds.
        low, high: percentiles of the resampled means.
    """

    mean: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def interval(
    values: np.ndarray, clusters: np.ndarray, level: float = 0.95, seed: int = 0
) -> Interval:
    """The interval of a mean, of differences for instance.

    Args:
        values: (S, Q) of each seed and query.
        clusters: (Q,) int, equal for queries that are drawn together.
        level: share of the resampled means inside.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    seeds, _ = values.shape
    _, place = np.unique(clusters, return_inverse=True)
    count = int(place.max()) + 1
    sizes = np.bincount(place, minlength=count)
    sums = np.stack([np.bincount(place, row, minlength=count) for row in values])
    means = []
    for _ in range(0, _RESAMPLES, _CHUNK):
        drawn = rng.multinomial(count, np.full(count, 1 / count), _CHUNK)
        repeats = rng.multinomial(seeds, np.full(seeds, 1 / seeds), _CHUNK) / seeds
        means.append(((drawn @ sums.T) * repeats).sum(axis=1) / (drawn @ sizes))
    tail = 50 * (1 - level)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def family_level(contrasts: int, level: float = 0.95) -> float:
    """The level of each of several intervals that makes all hold at once (Bonferroni)."""
    return 1 - (1 - level) / max(contrasts, 1)
