"""Intervals of means: closed forms, clusters, seeds, and coverage."""

import numpy as np
import pytest

from capret_jax.ablation import statistics
from capret_jax.ablation.statistics import family_level, interval


def test_a_constant_has_no_width():
    assert interval(np.full((3, 20), 0.25), np.arange(20)) == pytest.approx((0.25, 0.25, 0.25))


def test_independent_queries_have_the_normal_interval():
    values = np.random.default_rng(0).normal(0.1, 1.0, (1, 2000))
    found = interval(values, np.arange(2000))
    error = values.std() / np.sqrt(2000)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_queries_that_fail_together_say_less():
    values = np.repeat(np.random.default_rng(0).normal(size=(1, 100)), 9, axis=1)
    apart = interval(values, np.arange(900))
    together = interval(values, np.repeat(np.arange(100), 9))
    assert together.high - together.low == pytest.approx(3 * (apart.high - apart.low), rel=0.1)


def test_seeds_that_disagree_widen_it():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1, 400)) * 0.1 + np.array([[-1.0], [0.0], [1.0]])
    found = interval(values, np.arange(400))
    assert found.low < -0.5 and found.high > 0.5 and not found.sure


def test_unequal_clusters_are_weighted_by_their_queries():
    values, clusters = np.array([[1.0, 1, 1, 0]]), np.array([5, 5, 5, 9])
    found = interval(values, clusters)
    assert found.mean == 0.75
    # Two clusters, drawn twice: means 0, 3/4 and 1 with 1/4, 1/2 and 1/4; one degree of freedom.
    spread = np.sqrt(2 * np.average([0.75**2, 0, 0.25**2], weights=[1, 2, 1]) * 17 / 17)
    assert found.high - found.mean == pytest.approx(12.706 * spread, rel=0.2)


def test_few_seeds_have_students_interval():
    """Where queries do not differ, the closed form of a mean of three."""
    seeds = np.array([0.01, 0.02, 0.06])
    found = interval(np.repeat(seeds[:, None], 30, axis=1), np.arange(30))
    assert found.high - found.mean == pytest.approx(
        4.3027 * seeds.std(ddof=1) / np.sqrt(3), rel=1e-4
    )


@pytest.mark.parametrize("seed_noise", [0.0, 0.15, 0.6])
def test_it_holds_as_often_as_it_says(seed_noise, monkeypatch):
    """Three seeds, 40 identities of three queries, and no difference: with each kind of noise."""
    monkeypatch.setattr(statistics, "_RESAMPLES", 400)
    monkeypatch.setattr(statistics, "_CHUNK", 400)
    rng, inside, trials = np.random.default_rng(0), 0, 400
    for trial in range(trials):
        identities = rng.normal(size=(1, 40, 1)) + rng.normal(size=(3, 40, 3)) * 0.3
        values = (identities + seed_noise * rng.normal(size=(3, 1, 1))).reshape(3, -1)
        found = interval(values, np.repeat(np.arange(40), 3), level=0.9, seed=trial)
        inside += found.low <= 0 <= found.high
    assert 0.87 <= inside / trials <= 0.96


def test_many_contrasts_ask_for_more():
    assert family_level(1) == 0.95
    assert family_level(10) == pytest.approx(0.995)
