"""What a difference between arms is worth: paired bootstrap over queries, seeds as repeats.

Queries of one cluster fail and succeed together, so clusters are drawn, with all their queries.
Seeds are too few to draw: their spread enters as the variance of a mean, and the intervals are
Student's, with the degrees of freedom that both sources leave (Satterthwaite, Biometrics Bulletin
2(6), 1946). Seeds and queries together are counted twice, so intervals are a little too wide.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

_RESAMPLES = 10_000
_CHUNK = 1000
# Clusters under which an interval means nothing.
FEWEST = 5


class Interval(NamedTuple):
    """A mean and its interval.

    Attributes:
        mean: of all queries and seeds.
        low, high: ends.
    """

    mean: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0

    def within(self, least: float, most: float) -> "Interval":
        """Its part among the values that there can be."""
        return Interval(*(min(max(value, least), most) for value in self))


def interval(
    values: np.ndarray, clusters: np.ndarray, level: float = 0.95, seed: int = 0
) -> Interval:
    """The interval of a mean, of differences for instance.

    Args:
        values: (S, Q) of each seed and query. One seed says nothing of how another would have
            trained, and the interval is about queries alone.
        clusters: (Q,) int, equal for queries that are drawn together.
        level: how often such an interval is to hold the truth.
        seed: of the draws.
    """
    seeds, (_, place) = len(values), np.unique(clusters, return_inverse=True)
    mean, count = float(values.mean()), int(place.max()) + 1
    drawn = _resampled(values.mean(axis=0), place, np.random.default_rng(seed))
    # A resample of n clusters spreads as if there were one less of them.
    of_queries = float(drawn.var()) * count / max(count - 1, 1)
    of_seeds = float(values.mean(axis=1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    variance = of_queries + of_seeds
    if variance == 0:
        return Interval(mean, mean, mean)
    freedom = variance**2 / (of_queries**2 / max(count - 1, 1) + of_seeds**2 / max(seeds - 1, 1))
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * variance**0.5
    return Interval(mean, mean - reach, mean + reach)


def _resampled(values: np.ndarray, place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(Q,) and the cluster of each -> means of all queries when clusters are drawn anew."""
    count = int(place.max()) + 1
    sums, sizes = np.bincount(place, values, count), np.bincount(place, minlength=count)
    means = []
    for _ in range(0, _RESAMPLES, _CHUNK):
        drawn = rng.multinomial(count, np.full(count, 1 / count), min(_CHUNK, _RESAMPLES))
        means.append((drawn @ sums) / (drawn @ sizes))
    return np.concatenate(means)


def family_level(contrasts: int, level: float = 0.95) -> float:
    """The level of each of several intervals that makes all hold at once (Bonferroni)."""
    return 1 - (1 - level) / max(contrasts, 1)
