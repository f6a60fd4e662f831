"""Calibration: closed forms, and samples from known distributions."""

import numpy as np
import pytest

from capret_jax.captioning.calibration import (
    calibrate_answers,
    calibration_error,
    fit_temperature,
    fit_written_temperature,
)
from capret_jax.captioning.item_crops import ItemCrops
from capret_jax.captioning.vqa_answerer import apply_temperature
from capret_jax.config import DataConfig
from capret_jax.datasets import open_dataset
from capret_jax.errors import InputError


def test_written_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    calibrated = rng.uniform(size=20_000)
    right = rng.uniform(size=20_000) < calibrated
    temperature = fit_written_temperature(calibrated**0.5, right)
    assert temperature == pytest.approx(0.5, rel=0.05)
    # No correct answer at all: the temperature stops at its bound.
    assert fit_written_temperature(calibrated, np.zeros_like(right)) == pytest.approx(
        0.25, rel=0.01
    )


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    calibrated = rng.dirichlet(np.ones(5), 4000)
    truth = np.array([rng.choice(5, p=p) for p in calibrated])
    overconfident = apply_temperature(
        calibrated, 1 / 3
    )  # every log-probability three times as large
    assert fit_temperature([overconfident], [truth]) == pytest.approx(3, rel=0.06)
    right = overconfident.argmax(axis=1) == truth
    before = calibration_error(overconfident.max(axis=1), right)
    after = calibration_error(apply_temperature(overconfident, 3).max(axis=1), right)
    assert before > 0.15 and after < 0.03


def test_calibration_error_is_the_mean_gap_over_bins():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.15, 0.15])
    right = np.array([1, 1, 1, 0, 0, 0], bool)
    assert calibration_error(confidence, right) == pytest.approx((4 * 0.2 + 2 * 0.15) / 6)


def test_items_without_annotated_answers_are_refused(answerer, prepared_dir):
    data = DataConfig(variant="mini", prepared_dir=str(prepared_dir))
    crops = ItemCrops(open_dataset(data), data.name, 32, data.augment.margin)
    with pytest.raises(InputError, match="no training item has an annotated answer"):
        calibrate_answers(answerer, (), crops)
