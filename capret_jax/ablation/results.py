"""What the cells of an ablation say together: arms, contrasts between them, and a conclusion."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from capret_jax.ablation.plan import IMAGE, NONE, Plan, Reading
from capret_jax.ablation.statistics import FEWEST, Interval, family_level, interval
from capret_jax.data.schema import CATEGORIES, LEVELS
from capret_jax.errors import InputError
from capret_jax.retrieval.metrics import TOP_K


class Arm(NamedTuple):
    """A cell's arms without its seed, and the captions at inference."""

    captions: str
    objects: str
    stage: str
    embedding: str
    said: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Results query by query.

    Attributes:
        precision: arm -> (S, Q) average precision of each seed and query.
        first: arm -> (S, Q) rank of the first right answer, from 0.
        queries: columns of `queries.json`, equal in all cells, less the results.
        clusters: (Q,) identity of each query.
    """

    precision: dict[Arm, np.ndarray]
    first: dict[Arm, np.ndarray]
    queries: dict[str, np.ndarray]
    clusters: np.ndarray


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A difference of mAP between two sets of arms, paired by seed and query.

    Attributes:
        kind: "captions", "objects", "stage" or "embedding".
        name: of what is compared.
        against: with what.
        where: over which arms.
        difference: with a 95 % interval.
        family: with one that holds for all main contrasts at once; None of the others.
        by_seed: the difference of each seed.
        arms, others: the two sets, pair by pair.
    """

    kind: str
    name: str
    against: str
    where: str
    difference: Interval
    family: Interval | None
    by_seed: tuple[float, ...]
    arms: tuple[Arm, ...]
    others: tuple[Arm, ...]

    @property
    def verdict(self) -> str:
        """What it shows: of main contrasts for sure, else perhaps."""
        if self.family and self.family.sure:
            return "helps" if self.difference.mean > 0 else "hurts"
        if self.difference.sure:
            return f"may {'help' if self.difference.mean > 0 else 'hurt'}"
        return "no difference shown"

    def as_dict(self) -> dict:
        """For JSON."""
        return {
            **dataclasses.asdict(self),
            "difference": self.difference._asdict(),
            "family": self.family and self.family._asdict(),
            "verdict": self.verdict,
            "arms": [arm._asdict() for arm in self.arms],
            "others": [arm._asdict() for arm in self.others],
        }


def read_table(plan: Plan, workdir: pathlib.Path) -> Table:
    """Reads what the cells left.

    Raises:
        InputError: a cell is not done, or the cells had different queries.
    """
    found: dict[Arm, list[dict]] = {}
    for reading in plan.readings():
        found.setdefault(arm_of(reading), []).append(_read(workdir / reading.folder))
    keys = ("image_id", "item", "category", *LEVELS, "identity")
    (first, *_), *_ = found.values()
    for runs in found.values():
        for run in runs:
            if any(run[key] != first[key] for key in keys):
                raise InputError(f"the cells in {workdir} had different queries: other data?")
    queries = {key: np.array(first[key]) for key in keys}
    return Table(
        {arm: np.array([run["average_precision"] for run in runs]) for arm, runs in found.items()},
        {arm: np.array([run["first"] for run in runs]) for arm, runs in found.items()},
        queries,
        queries["identity"],
    )


def arm_of(reading: Reading) -> Arm:
    """What a reading is one seed of."""
    captions, objects, stage, embedding, _ = reading.cell
    return Arm(captions, objects, stage, embedding, reading.said)


def _read(folder: pathlib.Path) -> dict:
    try:
        return json.loads((folder / "queries.json").read_text())
    except OSError as error:
        raise InputError(f"{folder} has no results: run the ablation to its end.") from error


def summarize_arms(table: Table) -> list[dict]:
    """One row for each arm: its names, mAP with an interval and by seed, and top-k."""
    rows = []
    for arm, precision in table.precision.items():
        first = table.first[arm]
        rows.append(
            {
                **arm._asdict(),
                "mAP": interval(precision, table.clusters)._asdict(),
                "mAP_by_seed": precision.mean(axis=1).tolist(),
                **{f"top_{k}": float((first < k).mean()) for k in TOP_K},
            }
        )
    return rows


def contrasts_of(table: Table, read_by: Sequence[str]) -> list[Contrast]:
    """All comparisons that the report makes.

    The main ones are about an arm as a whole, and are what is concluded from; the others look at it
    within one arm of another axis.

    Args:
        table: the results.
        read_by: captions, objects and stage of the embeddings that read captions.
    """
    arms = [arm for arm in table.precision if arm.embedding == IMAGE]
    stages = _values(arm.stage for arm in arms)
    pairs = []
    for stage in stages:
        here = [arm for arm in arms if arm.stage == stage]
        for name in _values(arm.captions for arm in here):
            pairs.append(_change(here, "captions", name, f"{stage}, mean over objects"))
        for name in _values(arm.objects for arm in here):
            pairs.append(_change(here, "objects", name, f"{stage}, mean over captions"))
        for objects in _values(arm.objects for arm in here):
            some = [arm for arm in here if arm.objects == objects]
            for name in _values(arm.captions for arm in some):
                pairs.append(_change(some, "captions", name, f"{stage}, objects {objects}"))
    if {"zero_shot", "fine_tuned"} <= set(stages):
        tuned = [arm for arm in arms if arm.stage == "fine_tuned"]
        before = [arm._replace(stage="zero_shot") for arm in tuned]
        pairs.append(("stage", "fine_tuned", "zero_shot", "mean over all", tuned, before))
    captions, objects, stage = read_by
    image = Arm(captions, objects, stage, IMAGE, NONE)
    for arm in table.precision:
        if arm.embedding != IMAGE:
            name = f"{arm.embedding}, {arm.said} captions"
            pairs.append(("embedding", name, IMAGE, ", ".join(read_by), [arm], [image]))
    pairs = [pair for pair in pairs if pair and _known(table, *pair[4:])]
    level = family_level(sum(_is_main(*pair[:4]) for pair in pairs))
    return [_contrast(table, level if _is_main(*pair[:4]) else None, *pair) for pair in pairs]


def _is_main(kind: str, name: str, against: str, where: str) -> bool:
    del name, against
    return kind in ("stage", "embedding") or "mean over" in where


def _values(names) -> list[str]:
    return list(dict.fromkeys(names))


def _change(arms: list[Arm], axis: str, name: str, where: str):
    """An arm of an axis against its "none", over the others."""
    if name == NONE:
        return None
    with_it = [arm for arm in arms if getattr(arm, axis) == name]
    return axis, name, NONE, where, with_it, [arm._replace(**{axis: NONE}) for arm in with_it]


def _known(table: Table, arms: list[Arm], others: list[Arm]) -> bool:
    return bool(arms) and all(arm in table.precision for arm in (*arms, *others))


def _contrast(table, level, kind, name, against, where, arms, others) -> Contrast:
    values = difference_of(table.precision, arms, others)
    return Contrast(
        kind,
        name,
        against,
        where,
        interval(values, table.clusters),
        interval(values, table.clusters, level) if level else None,
        tuple(values.mean(axis=1).tolist()),
        tuple(arms),
        tuple(others),
    )


def difference_of(
    precision: dict[Arm, np.ndarray], arms: Sequence[Arm], others: Sequence[Arm]
) -> np.ndarray:
    """(S, Q) mean difference of pairs of arms."""
    pairs = zip(arms, others, strict=True)
    return np.mean([precision[arm] - precision[other] for arm, other in pairs], axis=0)


def by_condition(table: Table, contrasts: Sequence[Contrast]) -> list[dict]:
    """Where arms win and lose: their differences among the queries of each level."""
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
                    "identities": len(np.unique(table.clusters[among])),
                    "differences": [_among(each, among, table.clusters) for each in values],
                }
            )
    return rows


def _among(values: np.ndarray, among: np.ndarray, clusters: np.ndarray) -> dict:
    """A mean; with an interval where there are enough identities for one."""
    if len(np.unique(clusters[among])) < FEWEST:
        return {"mean": float(values[:, among].mean()), "low": None, "high": None}
    return interval(values[:, among], clusters[among])._asdict()


def read_costs(plan: Plan) -> list[dict]:
    """One row for each captions arm: what its captions say, and what they took per item."""
    rows = {}
    for cell in plan.cells:
        if cell.captions in rows:
            continue
        row = {"captions": cell.captions, "source": plan.teaches(cell)}
        if cell.captions in plan.collected:
            took = plan.captions_file(cell.captions).with_suffix(".json")
            row |= {"took": json.loads(took.read_text())}
        rows[cell.captions] = row
    return list(rows.values())


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
    said = [f"{group} - {'; '.join(found)}." for group, found in together.items()]
    main = sum(len(found) for found in together.values())
    said.append(
        f"Points of mAP; {queries} queries, {seeds} seeds, {main} contrasts: each interval has the "
        f"level {100 * family_level(main):.2f} %, so that all hold together with 95 %."
    )
    said.append(
        "All cells start from one model: intervals say nothing of how another would have been "
        "pre-trained."
    )
    if seeds < 2:
        said.append("One seed: the intervals say nothing of how another would have trained.")
    return said


def best_captions(contrasts: Sequence[Contrast], stage: str) -> Contrast | None:
    """The captions arm that changes the most for the better, over all objects."""
    where = f"{stage}, mean over objects"
    among = [each for each in contrasts if each.kind == "captions" and each.where == where]
    return max(among, key=lambda contrast: contrast.difference.mean, default=None)
