"""Conclusions from contrasts: sentences, and differences by condition of the query."""

from collections.abc import Sequence

import numpy as np

from capret_jax.ablation.contrasts import Contrast, paired_difference
from capret_jax.ablation.grid import IMAGE, NONE
from capret_jax.ablation.results import Arm, ResultTable
from capret_jax.ablation.statistics import MIN_CLUSTERS, confidence_interval, family_level
from capret_jax.data.schema import CATEGORIES, LEVELS


def write_conclusion(contrasts: Sequence[Contrast], queries: int, seeds: int) -> list[str]:
    """Returns sentences on the primary contrasts, with their family-wise intervals.

    Args:
        contrasts: all of them.
        queries, seeds: their numbers.
    """
    groups: dict[str, list[str]] = {}
    for contrast in contrasts:
        if not contrast.family:
            continue
        group = f"{contrast.kind.capitalize()} against {contrast.against} ({contrast.where})"
        mean, low, high = (100 * value for value in contrast.family)
        groups.setdefault(group, []).append(
            f"{contrast.name}: {contrast.verdict} ({mean:+.1f} points, {low:+.1f} to {high:+.1f})"
        )
    sentences = [f"{group} - {'; '.join(effects)}." for group, effects in groups.items()]
    if any(contrast.kind == "captions" for contrast in contrasts):
        sentences.insert(0, _answer(contrasts))
    primary = sum(len(effects) for effects in groups.values())
    sentences.append(
        f"Points of mAP; {queries} queries, seeds: {seeds}, contrasts: {primary}; each interval "
        f"has the level {100 * family_level(primary):.2f} %, so that all hold jointly with 95 %."
    )
    sentences.append(
        "All cells start from one initial model, which was trained with language: the intervals do "
        "not cover other initial models, nor one without language."
    )
    untrained = Arm(NONE, NONE, "zero_shot", IMAGE, NONE)
    if any(untrained in (*contrast.arms, *contrast.others) for contrast in contrasts):
        sentences.append(
            "In zero_shot, captions none with objects none is the initial model, without a step of "
            "training."
        )
    if seeds < 2:
        sentences.append("One seed: the intervals do not cover variation between training runs.")
    return sentences


def _answer(contrasts: Sequence[Contrast]) -> str:
    """Returns the sentence on the captions that help, and that hurt, in each stage."""
    by_stage: dict[str, list[Contrast]] = {}
    for contrast in contrasts:
        if contrast.kind == "captions" and contrast.family:
            by_stage.setdefault(contrast.arms[0].stage, []).append(contrast)
    clauses = []
    for stage, group in by_stage.items():
        helping, hurting = (
            [_label(contrast, "") for contrast in group if contrast.verdict == verdict]
            for verdict in ("helps", "hurts")
        )
        helped = f"{_join(helping)} help" if helping else "not for sure"
        hurt = f", and {_join(hurting)} hurt" if hurting else ""
        clauses.append(f"in {stage}, {helped}{hurt}")
    return f"Does language help? {'; '.join(clauses)}."


def _join(names: Sequence[str]) -> str:
    """Joins names with commas and "and"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def best_captions(contrasts: Sequence[Contrast], stage: str) -> Contrast | None:
    """Returns a stage's primary contrast of captions with the largest gain."""
    candidates = [
        contrast
        for contrast in contrasts
        if contrast.kind == "captions" and contrast.family and contrast.arms[0].stage == stage
    ]
    return max(candidates, key=lambda contrast: contrast.difference.mean, default=None)


def condition_tables(table: ResultTable, contrasts: Sequence[Contrast]) -> list[dict]:
    """Returns a table of differences by condition for each stage, and one for the embeddings.

    Returns:
        Tables: "name"; "contrasts", labels of the primary contrasts; "rows", see `condition_rows`.
    """
    groups: dict[str, list[Contrast]] = {}
    for contrast in contrasts:
        if contrast.family and contrast.kind != "stage":
            embedding = contrast.kind == "embedding"
            groups.setdefault("embedding" if embedding else contrast.arms[0].stage, []).append(
                contrast
            )
    return [
        {
            "name": name,
            "contrasts": [_label(contrast) for contrast in group],
            "rows": condition_rows(table, group),
        }
        for name, group in groups.items()
    ]


def _label(contrast: Contrast, against: str = " - none") -> str:
    """Returns the contrast's name within its stage."""
    if contrast.kind == "embedding":
        return f"{contrast.name} - {contrast.against}"
    arms = contrast.where.partition(", ")[2]
    return f"{contrast.name}{against}{'' if 'mean over' in arms else f' ({arms})'}"


def condition_rows(table: ResultTable, contrasts: Sequence[Contrast]) -> list[dict]:
    """Returns the differences among the queries of each level of each condition.

    Returns:
        Rows: "condition", "level", "queries" and "pairs", their numbers, and "differences", one of
        each contrast: "mean", and "low" and "high", None where there are too few pairs.
    """
    values = [
        paired_difference(table.precision, contrast.arms, contrast.others) for contrast in contrasts
    ]
    rows = []
    for condition, levels in {**LEVELS, "category": CATEGORIES}.items():
        column = table.queries[condition]
        for value in np.unique(column):
            mask = column == value
            clusters = table.clusters[mask]
            rows.append(
                {
                    "condition": condition,
                    "level": levels[value - 1],
                    "queries": int(mask.sum()),
                    "pairs": len(np.unique(clusters)),
                    "differences": [_mean_and_interval(each[:, mask], clusters) for each in values],
                }
            )
    return rows


def _mean_and_interval(values: np.ndarray, clusters: np.ndarray) -> dict:
    """Returns the mean of (S, Q) values, and its interval if (Q,) `clusters` has enough values."""
    if len(np.unique(clusters)) < MIN_CLUSTERS:
        return {"mean": float(values.mean()), "low": None, "high": None}
    return confidence_interval(values, clusters).clip(-1.0, 1.0)._asdict()
