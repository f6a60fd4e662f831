"""What the contrasts say together: the answer in sentences, and where arms win and lose."""

from collections.abc import Sequence

import numpy as np

from capret_jax.ablation.contrasts import Contrast, difference_of
from capret_jax.ablation.grid import IMAGE, NONE
from capret_jax.ablation.results import Arm, Table
from capret_jax.ablation.statistics import FEWEST, family_level, interval
from capret_jax.data.schema import CATEGORIES, LEVELS


def conclude(contrasts: Sequence[Contrast], queries: int, seeds: int) -> list[str]:
    """The answer in sentences, each with its intervals."""
    together: dict[str, list[str]] = {}
    for each in contrasts:
        if not each.family:
            continue
        group = f"{each.kind.capitalize()} against {each.against} ({each.where})"
        mean, low, high = (100 * value for value in each.family)
        together.setdefault(group, []).append(
            f"{each.name}: {each.verdict} ({mean:+.1f} points, {low:+.1f} to {high:+.1f})"
        )
    said = [_answer(contrasts)] if any(each.kind == "captions" for each in contrasts) else []
    said += [f"{group} - {'; '.join(found)}." for group, found in together.items()]
    main = sum(len(found) for found in together.values())
    said.append(
        f"Points of mAP; {queries} queries, seeds: {seeds}, contrasts: {main}; each interval has "
        f"the level {100 * family_level(main):.2f} %, so that all hold together with 95 %."
    )
    said.append(
        "All cells start from one model, which learnt language before: intervals say nothing of "
        "how another would have been pre-trained, nor of a model without language."
    )
    untrained = Arm(NONE, NONE, "zero_shot", IMAGE, NONE)
    if any(untrained in (*each.arms, *each.others) for each in contrasts):
        said.append(
            "In zero_shot, captions none with objects none is that model as it is, without a step "
            "of training."
        )
    if seeds < 2:
        said.append("One seed: the intervals say nothing of how another would have trained.")
    return said


def _answer(contrasts: Sequence[Contrast]) -> str:
    """In a sentence: which captions help, and which hurt, in each stage."""
    by_stage: dict[str, list[Contrast]] = {}
    for each in contrasts:
        if each.kind == "captions" and each.family:
            by_stage.setdefault(each.arms[0].stage, []).append(each)
    said = []
    for stage, group in by_stage.items():
        found = {
            verdict: [_label(each, "") for each in group if each.verdict == verdict]
            for verdict in ("helps", "hurts")
        }
        helping = f"{_and(found['helps'])} help" if found["helps"] else "not for sure"
        hurting = f", and {_and(found['hurts'])} hurt" if found["hurts"] else ""
        said.append(f"in {stage}, {helping}{hurting}")
    return f"Does language help? {'; '.join(said)}."


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def best_captions(contrasts: Sequence[Contrast], stage: str) -> Contrast | None:
    """The captions arm that changes the most for the better."""
    among = [
        each
        for each in contrasts
        if each.kind == "captions" and each.family and each.arms[0].stage == stage
    ]
    return max(among, key=lambda contrast: contrast.difference.mean, default=None)


def by_conditions(table: Table, contrasts: Sequence[Contrast]) -> list[dict]:
    """Where arms win and lose: a table for each stage's main contrasts, one for the embeddings."""
    groups: dict[str, list[Contrast]] = {}
    for each in contrasts:
        if each.family and each.kind != "stage":
            group = each.kind if each.kind == "embedding" else each.arms[0].stage
            groups.setdefault(group, []).append(each)
    return [
        {
            "name": name,
            "contrasts": [_label(each) for each in group],
            "rows": by_condition(table, group),
        }
        for name, group in groups.items()
    ]


def _label(contrast: Contrast, against: str = " - none") -> str:
    """Its name within its stage."""
    if contrast.kind == "embedding":
        against = f" - {contrast.against}"
    part = contrast.where.partition(", ")[2]
    within = "" if contrast.kind == "embedding" or "mean over" in part else f" ({part})"
    return f"{contrast.name}{against}{within}"


def by_condition(table: Table, contrasts: Sequence[Contrast]) -> list[dict]:
    """The differences among the queries of each level."""
    values = [difference_of(table.precision, each.arms, each.others) for each in contrasts]
    names = {**LEVELS, "category": CATEGORIES}
    rows = []
    for condition, levels in names.items():
        column = table.queries[condition]
        for value in np.unique(column):
            among = column == value
            rows.append(
                {
                    "condition": condition,
                    "level": levels[value - 1],
                    "queries": int(among.sum()),
                    "pairs": len(np.unique(table.clusters[among])),
                    "differences": [_among(each, among, table.clusters) for each in values],
                }
            )
    return rows


def _among(values: np.ndarray, among: np.ndarray, clusters: np.ndarray) -> dict:
    """A mean; with an interval where there are enough pairs for one."""
    if len(np.unique(clusters[among])) < FEWEST:
        return {"mean": float(values[:, among].mean()), "low": None, "high": None}
    return interval(values[:, among], clusters[among]).within(-1.0, 1.0)._asdict()
