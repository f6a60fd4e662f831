"""Queries whose first result changes with captions, with pictures for the report."""

import pathlib
from typing import NamedTuple

import numpy as np

from capret_jax.ablation.contrasts import Contrast
from capret_jax.ablation.grid import Grid
from capret_jax.ablation.results import Arm, ResultTable, arm_of, read_queries
from capret_jax.data.split import Split
from capret_jax.evaluation.report import Picture, data_uri

_QUERIES_SHOWN = 6  # for each direction: became right, became wrong
_RESULTS_SHOWN = 5


class ChangedQuery(NamedTuple):
    """A query whose first result became right or wrong.

    Attributes:
        query: data URI of its picture.
        before, after: the first results without and with captions.
    """

    query: str
    before: list[Picture]
    after: list[Picture]


def changed_queries(
    grid: Grid, workdir: pathlib.Path, table: ResultTable, split: Split, contrast: Contrast
) -> dict[str, list[ChangedQuery]]:
    """Finds the queries whose first result a captions arm changed, in the first seed.

    Args:
        grid: the cells.
        workdir: folder of the ablation.
        table: their results.
        split: the validation split.
        contrast: of captions; of its pairs of arms the last one is shown.

    Returns:
        Title -> the queries that changed most, for those that became right and wrong.
    """
    arm, other = contrast.arms[-1], contrast.others[-1]
    with_captions, without = table.first_rank[arm][0] == 0, table.first_rank[other][0] == 0
    gain = table.precision[arm][0] - table.precision[other][0]
    before, after = (_first_seed_queries(grid, workdir, each) for each in (other, arm))
    names = zip(split.items["image_id"].tolist(), split.items["number"].tolist(), strict=True)
    rows = {name: row for row, name in enumerate(names)}

    def most_changed(changed: np.ndarray, gain: np.ndarray) -> list[ChangedQuery]:
        order = np.flatnonzero(changed)[np.argsort(-gain[changed], kind="stable")]
        return [
            ChangedQuery(
                data_uri(split, rows[after["image_id"][query], after["item"][query]]),
                _first_results(split, before, query),
                _first_results(split, after, query),
            )
            for query in order[:_QUERIES_SHOWN].tolist()
        ]

    right, wrong = with_captions & ~without, without & ~with_captions
    name = f"{arm.captions} captions"
    return {
        f"Right with {name}, wrong without ({int(right.sum())})": most_changed(right, gain),
        f"Wrong with {name}, right without ({int(wrong.sum())})": most_changed(wrong, -gain),
    }


def _first_seed_queries(grid: Grid, workdir: pathlib.Path, arm: Arm) -> dict[str, list]:
    """The columns of an arm's `queries.json`, of the first seed."""
    evaluation = next(
        evaluation
        for evaluation in grid.evaluations()
        if evaluation.cell.seed == grid.seeds[0] and arm_of(evaluation) == arm
    )
    return read_queries(workdir, evaluation)


def _first_results(split: Split, queries: dict[str, list], query: int) -> list[Picture]:
    rows, right = queries["found"][query][:_RESULTS_SHOWN], queries["right"][query]
    return [
        Picture(data_uri(split, row), 0.0, is_right)
        for row, is_right in zip(rows, right, strict=False)
    ]
