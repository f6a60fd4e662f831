"""How far answers can be trusted: temperatures that make probabilities mean what they say."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from capret_jax.captioning.item_crops import ItemCrops
from capret_jax.captioning.vqa_answerer import TINY, VqaAnswerer, sharpen
from capret_jax.data.vqa import Question, known_answers

# Training items whose known answers are compared.
_CALIBRATED_ON = 512
_WRITTEN_BOUNDS = (-np.log(4), np.log(4))


class Calibration(NamedTuple):
    """How far the answers can be trusted, on items whose true answers are known.

    Attributes:
        temperature: that makes probabilities mean what they say.
        written_temperature: the same of written answers.
        error_before, error: expected calibration error without it and with it.
        accuracy: topic -> share of right answers.
    """

    temperature: float
    written_temperature: float
    error_before: float
    error: float
    accuracy: dict[str, float]


def calibrate_answers(
    answerer: VqaAnswerer, questions: Sequence[Question], views: ItemCrops
) -> Calibration:
    """Compares answers with what is known of some training items.

    Args:
        answerer: at its temperatures of 1.
        questions: of which those are asked whose answers the dataset knows.
        views: of which those of the training split are looked at.
    """
    keys = views.keys(("train",))
    some = [keys[i] for i in np.unique(np.linspace(0, len(keys) - 1, _CALIBRATED_ON).astype(int))]
    states = answerer.look(np.stack([*map(views, some)]))
    known = [known_answers(views.attributes_of(key)) for key in some]
    tables, truths, accuracy = [], [], {}
    written: list[tuple[float, bool]] = []
    for question in questions:
        places = [i for i, k in enumerate(known) if k.get(question.topic) in question.answers]
        if not places:
            continue
        table = answerer.probabilities(states[places], question.text, question.answers)
        truth = np.array([question.answers.index(known[i][question.topic]) for i in places])
        tables.append(table)
        truths.append(truth)
        accuracy[question.topic] = float((table.argmax(axis=1) == truth).mean())
        own = answerer.written(states[places], [question.text] * len(places))
        written += [
            (answer.probability, _agree(answer.text, known[i][question.topic]))
            for i, answer in zip(places, own, strict=True)
        ]
    temperature = fit_temperature(tables, truths)
    before, after = (_error(tables, truths, each) for each in (1.0, temperature))
    written_temperature = fit_written_temperature(*map(np.array, zip(*written, strict=True)))
    return Calibration(temperature, written_temperature, before, after, accuracy)


def _agree(written: str, known: str) -> bool:
    """Whether one says nothing but what the other does: "top" of a short sleeve top."""
    words, others = set(written.split()), set(known.split())
    return bool(words) and (words <= others or others <= words)


def _error(tables, truths, temperature: float) -> float:
    sharpened = [sharpen(table, temperature) for table in tables]
    confidence = np.concatenate([table.max(axis=1) for table in sharpened])
    right = [table.argmax(axis=1) == truth for table, truth in zip(tables, truths, strict=True)]
    return calibration_error(confidence, np.concatenate(right))


def fit_temperature(tables: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> float:
    """The temperature at which true answers are likeliest (Guo et al., arXiv 1706.04599).

    Args:
        tables: (n, K) probabilities at temperature 1, one table for each question.
        truths: (n,) int, the true answer's column.
    """

    def loss(log_temperature):
        return sum(
            -np.log(np.maximum(sharpen(table, np.exp(log_temperature)), TINY))[
                np.arange(len(truth)), truth
            ].sum()
            for table, truth in zip(tables, truths, strict=True)
        )

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def fit_written_temperature(probabilities: np.ndarray, right: np.ndarray) -> float:
    """The temperature at which written answers are right as often as they say.

    Args:
        probabilities: (n,) at temperature 1.
        right: (n,) bool; where none is, words may differ and not what they mean: so it never makes
            less than a fourth power of a probability, nor more than a fourth root.
    """
    logs = np.log(np.clip(probabilities, TINY, 1 - 1e-6))

    def loss(log_temperature):
        sure = logs / np.exp(log_temperature)
        return -np.where(right, sure, np.log(-np.expm1(sure))).sum()

    return float(np.exp(minimize_scalar(loss, bounds=_WRITTEN_BOUNDS, method="bounded").x))


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: |confidence - accuracy|, averaged over bins of confidence.

    Args:
        confidence: (n,) in [0, 1].
        right: (n,) bool.
        bins: of equal width.
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    weight = np.bincount(place, minlength=bins)
    gap = np.bincount(place, confidence - right, minlength=bins)
    return float(np.abs(gap).sum() / max(weight.sum(), 1))
