"""Temperature calibration of the VQA model's probabilities."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from capret_jax.captioning.item_crops import ItemCrops
from capret_jax.captioning.vqa_answerer import MIN_PROBABILITY, VqaAnswerer, apply_temperature
from capret_jax.data.vqa import Question, known_answers
from capret_jax.errors import InputError

# Training items whose answers are compared with the annotations.
_CALIBRATION_ITEMS = 512
_WRITTEN_BOUNDS = (-np.log(4), np.log(4))


class Calibration(NamedTuple):
    """Reliability of the VQA model's answers on items with annotated answers.

    Attributes:
        temperature: temperature of the probabilities of listed answers.
        written_temperature: temperature of the probabilities of written answers.
        error_before, error: expected calibration error of listed answers without and with the
            temperature.
        accuracy: topic -> share of correct answers.
    """

    temperature: float
    written_temperature: float
    error_before: float
    error: float
    accuracy: dict[str, float]


def calibrate_answers(
    answerer: VqaAnswerer, questions: Sequence[Question], crops: ItemCrops
) -> Calibration:
    """Fits temperatures on answers about training items, and measures their reliability.

    Args:
        answerer: the VQA model, at temperatures of 1.
        questions: the listed questions; those without an annotated answer are not used.
        crops: the dataset's items, of which training items are used.

    Raises:
        InputError: no training item has an annotated answer to any of the questions.
    """
    keys = crops.keys(("train",))
    sampled = np.unique(np.linspace(0, len(keys) - 1, _CALIBRATION_ITEMS).astype(int))
    keys = [keys[row] for row in sampled]
    states = answerer.encode_images(np.stack([*map(crops, keys)]))
    known = [known_answers(crops.attributes_of(key)) for key in keys]
    probabilities, targets, accuracy = [], [], {}
    written: list[tuple[float, bool]] = []
    for question in questions:
        rows = [i for i, k in enumerate(known) if k.get(question.topic) in question.answers]
        if not rows:
            continue
        table = answerer.answer_probabilities(states[rows], question.text, question.answers)
        target = np.array([question.answers.index(known[i][question.topic]) for i in rows])
        probabilities.append(table)
        targets.append(target)
        accuracy[question.topic] = float((table.argmax(axis=1) == target).mean())
        answers = answerer.write_answers(states[rows], [question.text] * len(rows))
        written += [
            (answer.probability, _same_answer(answer.text, known[i][question.topic]))
            for i, answer in zip(rows, answers, strict=True)
        ]
    if not targets:
        raise InputError("no training item has an annotated answer to calibrate probabilities on.")
    temperature = fit_temperature(probabilities, targets)
    before, after = (_error_at(probabilities, targets, t) for t in (1.0, temperature))
    written_temperature = fit_written_temperature(*map(np.array, zip(*written, strict=True)))
    return Calibration(temperature, written_temperature, before, after, accuracy)


def _same_answer(written: str, known: str) -> bool:
    """Returns True if all words of one answer are in the other: "top" and "short sleeve top"."""
    words, others = set(written.split()), set(known.split())
    return bool(words) and (words <= others or others <= words)


def _error_at(probabilities, targets, temperature: float) -> float:
    scaled = [apply_temperature(table, temperature) for table in probabilities]
    confidence = np.concatenate([table.max(axis=1) for table in scaled])
    correct = [
        table.argmax(axis=1) == target for table, target in zip(probabilities, targets, strict=True)
    ]
    return calibration_error(confidence, np.concatenate(correct))


def fit_temperature(probabilities: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> float:
    """Fits the temperature that minimises the cross entropy (Guo et al., arXiv 1706.04599).

    Args:
        probabilities: (n, K) float at temperature 1, one array per question.
        targets: (n,) int columns of the correct answers, one array per question.

    Returns:
        The temperature, within [e^-3, e^3].
    """

    def loss(log_temperature):
        return sum(
            -np.log(np.maximum(apply_temperature(table, np.exp(log_temperature)), MIN_PROBABILITY))[
                np.arange(len(target)), target
            ].sum()
            for table, target in zip(probabilities, targets, strict=True)
        )

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def fit_written_temperature(probabilities: np.ndarray, correct: np.ndarray) -> float:
    """Fits the temperature that minimises the binary cross entropy of written answers.

    The temperature stays within [1/4, 4]. A written answer may use other words than the annotation
    for the same thing, so that few correct answers are no proof of low reliability.

    Args:
        probabilities: (n,) float at temperature 1.
        correct: (n,) bool, True for correct answers.
    """
    logs = np.log(np.clip(probabilities, MIN_PROBABILITY, 1 - 1e-6))

    def loss(log_temperature):
        scaled = logs / np.exp(log_temperature)
        return -np.where(correct, scaled, np.log(-np.expm1(scaled))).sum()

    return float(np.exp(minimize_scalar(loss, bounds=_WRITTEN_BOUNDS, method="bounded").x))


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> float:
    """Returns the expected calibration error: mean |confidence - accuracy| over confidence bins.

    Args:
        confidence: (n,) float in [0, 1].
        correct: (n,) bool, True for correct answers.
        bins: number of bins of equal width.
    """
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    gap = np.bincount(index, confidence - correct, minlength=bins)
    return float(np.abs(gap).sum() / max(count.sum(), 1))
