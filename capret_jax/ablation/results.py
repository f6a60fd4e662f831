"""What the cells of an ablation left: one row for each arm, and every query's result."""

import dataclasses
import json
import pathlib
from typing import NamedTuple

import numpy as np

from capret_jax.ablation.grid import Plan, Reading
from capret_jax.ablation.statistics import interval
from capret_jax.data.items import ItemTable
from capret_jax.data.schema import LEVELS
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
        clusters: (Q,) pair_id of each query: garments of one pair are photographed together, or are
            of one family, and fail together.
    """

    precision: dict[Arm, np.ndarray]
    first: dict[Arm, np.ndarray]
    queries: dict[str, np.ndarray]
    clusters: np.ndarray


def read_table(plan: Plan, workdir: pathlib.Path, items: ItemTable) -> Table:
    """Reads what the cells left.

    Args:
        plan: the cells.
        workdir: of the ablation.
        items: the validation split's.

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
    names = zip(items["image_id"].tolist(), items["number"].tolist(), strict=True)
    pairs = dict(zip(names, items["pair_id"].tolist(), strict=True))
    return Table(
        {arm: np.array([run["average_precision"] for run in runs]) for arm, runs in found.items()},
        {arm: np.array([run["first"] for run in runs]) for arm, runs in found.items()},
        queries,
        np.array([pairs[key] for key in zip(first["image_id"], first["item"], strict=True)]),
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
                "mAP": interval(precision, table.clusters).within(0.0, 1.0)._asdict(),
                "mAP_by_seed": precision.mean(axis=1).tolist(),
                **{f"top_{k}": float((first < k).mean()) for k in TOP_K},
            }
        )
    return rows


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
