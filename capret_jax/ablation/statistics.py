"""Confidence intervals of differences: cluster bootstrap over queries, seeds as repeats.

The results of queries in one cluster are correlated, so the bootstrap draws clusters, with all
their queries. There are too few seeds to resample: their spread enters as the variance of a mean,
and the intervals are those of Student's t, with the effective degrees of freedom of the two
variances (Satterthwaite, Biometrics Bulletin 2(6), 1946). The interaction of seeds and queries is
counted twice, so intervals are a little too wide.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

_RESAMPLES = 10_000
_CHUNK = 1000
# With fewer clusters a bootstrap interval is meaningless.
MIN_CLUSTERS = 5


class Interval(NamedTuple):
    """A mean and its confidence interval.

    Attributes:
        mean: over all queries and seeds.
        low, high: ends of the interval.
    """

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Returns True if the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def clip(self, minimum: float, maximum: float) -> "Interval":
        """Returns the interval with all of its values limited to a range."""
        return Interval(*(min(max(value, minimum), maximum) for value in self))


def confidence_interval(
    values: np.ndarray, clusters: np.ndarray, level: float = 0.95, seed: int = 0
) -> Interval:
    """Returns the confidence interval of a mean, for instance of differences.

    Args:
        values: (S, Q) float of each seed and query. With one seed the interval covers the choice of
            queries alone, and no variation between training runs.
        clusters: (Q,) int, equal for queries that are drawn together.
        level: coverage of the interval, in (0, 1).
        seed: seed of the bootstrap.
    """
    seeds, (_, cluster_index) = len(values), np.unique(clusters, return_inverse=True)
    mean, count = float(values.mean()), int(cluster_index.max()) + 1
    rng = np.random.default_rng(seed)
    means = _bootstrap_means(values.mean(axis=0), cluster_index, rng)
    # A bootstrap of n clusters underestimates the variance by the factor (n - 1) / n.
    query_variance = float(means.var()) * count / max(count - 1, 1)
    seed_variance = float(values.mean(axis=1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    variance = query_variance + seed_variance
    if variance == 0:
        return Interval(mean, mean, mean)
    degrees_of_freedom = variance**2 / (
        query_variance**2 / max(count - 1, 1) + seed_variance**2 / max(seeds - 1, 1)
    )
    half_width = float(stats.t.ppf((1 + level) / 2, degrees_of_freedom)) * variance**0.5
    return Interval(mean, mean - half_width, mean + half_width)


def _bootstrap_means(
    values: np.ndarray, cluster_index: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Returns bootstrap means over queries, with clusters drawn with replacement.

    Args:
        values: (Q,) float.
        cluster_index: (Q,) int cluster of each query, from 0.
        rng: random generator of the bootstrap.

    Returns:
        (R,) float, one of each resample.
    """
    count = int(cluster_index.max()) + 1
    sums = np.bincount(cluster_index, values, count)
    sizes = np.bincount(cluster_index, minlength=count)
    means = []
    for _ in range(0, _RESAMPLES, _CHUNK):
        drawn = rng.multinomial(count, np.full(count, 1 / count), min(_CHUNK, _RESAMPLES))
        means.append((drawn @ sums) / (drawn @ sizes))
    return np.concatenate(means)


def family_level(contrasts: int, level: float = 0.95) -> float:
    """Returns the level at which each of several intervals must hold (Bonferroni).

    Args:
        contrasts: number of intervals.
        level: coverage of all of them jointly, in (0, 1).
    """
    return 1 - (1 - level) / max(contrasts, 1)
