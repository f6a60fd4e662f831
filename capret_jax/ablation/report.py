"""An ablation's results for people: a page with pictures, and Markdown with the same tables."""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from capret_jax.ablation.audit import audit
from capret_jax.ablation.conclusions import best_captions, by_conditions, conclude
from capret_jax.ablation.contrasts import Contrast, contrasts_of
from capret_jax.ablation.grid import Plan
from capret_jax.ablation.results import Table, arm_of, read_costs, read_table, summarize_arms
from capret_jax.data.pipeline import Split
from capret_jax.datasets import Dataset
from capret_jax.evaluation.report import Picture, data_uri
from capret_jax.evaluation.templates import render

_QUERIES_SHOWN = 6  # of those that became right, and of those that became wrong
_RESULTS_SHOWN = 5


class Change(NamedTuple):
    """A query whose first answer became right or wrong; its picture, and both arms' results."""

    query: str
    before: list[Picture]
    after: list[Picture]


def write_results(plan: Plan, dataset: Dataset, workdir: pathlib.Path, read_by: tuple) -> dict:
    """Leaves `ablation.json`, `report.html` and `report.md` in the ablation's folder.

    Args:
        plan: all of whose cells are done.
        dataset: that they ran on.
        workdir: the folder.
        read_by: captions, objects and stage of the embeddings that read captions.

    Returns:
        The content of `ablation.json`: "conclusion", sentences; "arms", "contrasts", "conditions",
        "costs", "audit", "seeds", "queries", "identities" and "pairs".

    Raises:
        InputError: a cell is not done.
    """
    table = read_table(plan, workdir, dataset.validation.items)
    contrasts = contrasts_of(table, read_by)
    queries, seeds = len(table.clusters), len(plan.seeds)
    identities = table.queries["identity"]
    best = best_captions(contrasts, "fine_tuned") or best_captions(contrasts, "zero_shot")
    results: dict[str, Any] = {
        "conclusion": conclude(contrasts, queries, seeds),
        "arms": summarize_arms(table),
        "contrasts": [contrast.as_dict() for contrast in contrasts],
        "conditions": by_conditions(table, contrasts),
        "costs": read_costs(plan),
        "audit": audit(plan, dataset, workdir / "hashes"),
        "seeds": list(plan.seeds),
        "queries": queries,
        "identities": len(np.unique(identities)),
        "pairs": len(np.unique(table.clusters)),
    }
    (workdir / "ablation.json").write_text(json.dumps(results, indent=2) + "\n")
    changes = _changes(plan, table, dataset.validation, workdir, best) if best else {}
    for name in ("report.html", "report.md"):
        template = pathlib.Path(__file__).with_name(f"{name}.jinja")
        page = render(template, **results, best=best, changes=changes, plot=forest_plot(contrasts))
        (workdir / name).write_text(page)
    return results


def _changes(
    plan: Plan, table: Table, split: Split, workdir: pathlib.Path, best: Contrast
) -> dict[str, list[Change]]:
    """Of the first seed and the last objects: queries whose first answer changed."""
    arm, other = best.arms[-1], best.others[-1]
    after, before = table.first[arm][0] == 0, table.first[other][0] == 0
    gain = table.precision[arm][0] - table.precision[other][0]
    results = {
        each: json.loads((workdir / reading.folder / "queries.json").read_text())
        for reading in plan.readings()
        for each in (arm, other)
        if reading.cell.seed == plan.seeds[0] and arm_of(reading) == each
    }
    rows = {key: row for row, key in enumerate(_keys(split))}

    def change(query: int) -> Change:
        key = int(table.queries["image_id"][query]), int(table.queries["item"][query])
        strips = [
            [
                Picture(data_uri(split, row), 0.0, right)
                for row, right in zip(
                    results[each]["found"][query][:_RESULTS_SHOWN],
                    results[each]["right"][query],
                    strict=False,
                )
            ]
            for each in (other, arm)
        ]
        return Change(data_uri(split, rows[key]), *strips)

    def most(among: np.ndarray, sign: int) -> list[Change]:
        order = np.flatnonzero(among)[np.argsort(-sign * gain[among], kind="stable")]
        return [change(int(query)) for query in order[:_QUERIES_SHOWN]]

    name = f"{arm.captions} captions"
    return {
        f"Right with {name}, wrong without ({int((after & ~before).sum())})": most(
            after & ~before, 1
        ),
        f"Wrong with {name}, right without ({int((before & ~after).sum())})": most(
            before & ~after, -1
        ),
    }


def _keys(split: Split) -> list[tuple[int, int]]:
    items = split.items
    return list(zip(items["image_id"].tolist(), items["number"].tolist(), strict=True))


class Bar(NamedTuple):
    """A contrast in the plot, in pixels."""

    label: str
    verdict: str
    y: int
    low: float
    mean: float
    high: float


class Plot(NamedTuple):
    """Differences with their intervals, in pixels; ticks are (x, points of mAP)."""

    bars: list[Bar]
    ticks: list[tuple[float, float]]
    zero: float
    width: int
    height: int


_LEFT, _RIGHT, _ROW = 430, 960, 22
# Between ticks, in mAP.
_STEPS, _MOST_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5), 10


def forest_plot(contrasts: list[Contrast]) -> Plot:
    """Where to draw each main contrast's mean and the interval that holds for all of them."""
    shown = [(contrast, contrast.family) for contrast in contrasts if contrast.family]
    ends = [value for _, family in shown for value in (family.low, family.high)] + [-0.01, 0.01]
    low, high = min(ends), max(ends)

    def x(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (_RIGHT - _LEFT), 1)

    bars = [
        Bar(
            f"{c.name} - {c.against} ({c.where})",
            c.verdict,
            _ROW * (i + 1),
            x(family.low),
            x(family.mean),
            x(family.high),
        )
        for i, (c, family) in enumerate(shown)
    ]
    step = next(step for step in _STEPS if (high - low) / step <= _MOST_TICKS)
    marks = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    ticks = [(x(float(mark)), 100 * float(mark)) for mark in marks]
    return Plot(bars, ticks, x(0.0), _RIGHT + 20, _ROW * (len(bars) + 2))
