"""Intervals of means: closed forms, clusters, seeds, and coverage."""

import numpy as np
import pytest

from capret_jax.ablation import statistics
from capret_jax.ablation.statistics import confidence_interval, family_level


def test_a_constant_has_no_width():
    assert confidence_interval(np.full((3, 20), 0.25), np.arange(20)) == pytest.approx(
        (0.25, 0.25, 0.25)
    )


def test_independent_queries_have_the_normal_interval():
    values = np.random.default_rng(0).normal(0.1, 1.0, (1, 2000))
    result = confidence_interval(values, np.arange(2000))
    error = values.std() / np.sqrt(2000)
    assert result.mean == pytest.approx(values.mean())
    assert result.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert result.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_clustered_queries_widen_the_interval():
    values = np.repeat(np.random.default_rng(0).normal(size=(1, 100)), 9, axis=1)
    apart = confidence_interval(values, np.arange(900))
    together = confidence_interval(values, np.repeat(np.arange(100), 9))
    assert together.high - together.low == pytest.approx(3 * (apart.high - apart.low), rel=0.1)


def test_disagreeing_seeds_widen_the_interval():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1, 400)) * 0.1 + np.array([[-1.0], [0.0], [1.0]])
    result = confidence_interval(values, np.arange(400))
    assert result.low < -0.5 and result.high > 0.5 and not result.significant


def test_unequal_clusters_are_weighted_by_their_queries():
    values, clusters = np.array([[1.0, 1, 1, 0]]), np.array([5, 5, 5, 9])
    result = confidence_interval(values, clusters)
    assert result.mean == 0.75
    # Two clusters, drawn twice: means 0, 3/4 and 1 with 1/4, 1/2 and 1/4; one degree of freedom.
    spread = np.sqrt(2 * np.average([0.75**2, 0, 0.25**2], weights=[1, 2, 1]) * 17 / 17)
    assert result.high - result.mean == pytest.approx(12.706 * spread, rel=0.2)


def test_few_seeds_have_students_interval():
    """Closed form of a mean of three, since the queries are equal."""
    seeds = np.array([0.01, 0.02, 0.06])
    result = confidence_interval(np.repeat(seeds[:, None], 30, axis=1), np.arange(30))
    assert result.high - result.mean == pytest.approx(
        4.3027 * seeds.std(ddof=1) / np.sqrt(3), rel=1e-4
    )


@pytest.mark.parametrize("seed_noise", [0.0, 0.15, 0.6])
def test_coverage_equals_the_level(seed_noise, monkeypatch):
    """Three seeds, 40 identities of three queries, a true mean of 0, and each kind of noise."""
    monkeypatch.setattr(statistics, "_RESAMPLES", 400)
    monkeypatch.setattr(statistics, "_CHUNK", 400)
    rng, inside, trials = np.random.default_rng(0), 0, 400
    for trial in range(trials):
        identities = rng.normal(size=(1, 40, 1)) + rng.normal(size=(3, 40, 3)) * 0.3
        values = (identities + seed_noise * rng.normal(size=(3, 1, 1))).reshape(3, -1)
        result = confidence_interval(values, np.repeat(np.arange(40), 3), level=0.9, seed=trial)
        inside += result.low <= 0 <= result.high
    assert 0.87 <= inside / trials <= 0.96


def test_the_family_level_grows_with_the_contrasts():
    assert family_level(1) == 0.95
    assert family_level(10) == pytest.approx(0.995)
