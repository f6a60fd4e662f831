"""Results of an ablation's cells: per query, and summarized per arm."""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from capret_jax.ablation.grid import EvaluationRun, Grid
from capret_jax.ablation.statistics import confidence_interval
from capret_jax.data.items import ItemTable
from capret_jax.data.schema import LEVELS
from capret_jax.errors import InputError
from capret_jax.retrieval.metrics import TOP_K


class Arm(NamedTuple):
    """The key of an evaluation without its seed: an arm of each axis, and the caption source."""

    captions: str
    objects: str
    stage: str
    embedding: str
    caption_source: str


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """Results query by query (S seeds, Q queries).

    Attributes:
        precision: arm -> (S, Q) float average precision.
        first_rank: arm -> (S, Q) int rank of the first right answer, from 0.
        queries: columns of `queries.json` that describe the queries, equal in all cells.
        clusters: (Q,) int pair_id of each query: garments of one pair are photographed together, or
            are of one family, so that their results are correlated.
    """

    precision: dict[Arm, np.ndarray]
    first_rank: dict[Arm, np.ndarray]
    queries: dict[str, np.ndarray]
    clusters: np.ndarray


def read_table(grid: Grid, workdir: pathlib.Path, items: ItemTable) -> ResultTable:
    """Reads the results of all cells.

    Args:
        grid: the cells.
        workdir: folder of the ablation.
        items: item table of the validation split.

    Raises:
        InputError: a cell is not done, or the cells had different queries.
    """
    runs_of_arm: dict[Arm, list[dict]] = {}
    for evaluation in grid.evaluations():
        runs_of_arm.setdefault(arm_of(evaluation), []).append(read_queries(workdir, evaluation))
    keys = ("image_id", "item", "category", *LEVELS, "identity")
    (reference, *_), *_ = runs_of_arm.values()
    for runs in runs_of_arm.values():
        for run in runs:
            if any(run[key] != reference[key] for key in keys):
                raise InputError(f"the cells in {workdir} had different queries: other data?")
    names = zip(items["image_id"].tolist(), items["number"].tolist(), strict=True)
    pairs = dict(zip(names, items["pair_id"].tolist(), strict=True))
    query_names = zip(reference["image_id"], reference["item"], strict=True)
    return ResultTable(
        {arm: _column(runs, "average_precision") for arm, runs in runs_of_arm.items()},
        {arm: _column(runs, "first") for arm, runs in runs_of_arm.items()},
        {key: np.array(reference[key]) for key in keys},
        np.array([pairs[name] for name in query_names]),
    )


def _column(runs: list[dict], key: str) -> np.ndarray:
    """Returns (S, Q) values of each seed and query."""
    return np.array([run[key] for run in runs])


def arm_of(evaluation: EvaluationRun) -> Arm:
    """Returns an evaluation's arm, shared by those of other seeds."""
    captions, objects, stage, embedding, _ = evaluation.cell
    return Arm(captions, objects, stage, embedding, evaluation.caption_source)


def read_queries(workdir: pathlib.Path, evaluation: EvaluationRun) -> dict[str, list]:
    """Reads the columns of an evaluation's `queries.json`.

    Raises:
        InputError: there is none.
    """
    folder = workdir / evaluation.folder
    try:
        return json.loads((folder / "queries.json").read_text())
    except OSError as error:
        raise InputError(f"{folder} has no results: run the ablation to its end.") from error


def summarize_arms(table: ResultTable) -> list[dict]:
    """Returns a row for each arm: its names, mAP with an interval and by seed, and top-k."""
    rows = []
    for arm, precision in table.precision.items():
        first_rank = table.first_rank[arm]
        rows.append(
            {
                **arm._asdict(),
                "mAP": confidence_interval(precision, table.clusters).clip(0.0, 1.0)._asdict(),
                "mAP_by_seed": precision.mean(axis=1).tolist(),
                **{f"top_{k}": float((first_rank < k).mean()) for k in TOP_K},
            }
        )
    return rows


def read_costs(grid: Grid) -> list[dict]:
    """Returns a row for each captions arm: "captions", its name; "source", the information in its
    captions; and, of collected ones, "collection", the summary with their cost per item.
    """
    rows: dict[str, dict[str, Any]] = {}
    for cell in grid.cells:
        if cell.captions in rows:
            continue
        row = {"captions": cell.captions, "source": grid.describe_training_captions(cell)}
        if cell.captions in grid.collected:
            summary = grid.captions_file(cell.captions).with_suffix(".json")
            row |= {"collection": json.loads(summary.read_text())}
        rows[cell.captions] = row
    return list(rows.values())
