"""Report of an ablation: JSON, a page with pictures, and Markdown with the same tables."""

import json
import pathlib
from typing import Any

import numpy as np

from capret_jax.ablation.audit import audit
from capret_jax.ablation.boxes import box_scores
from capret_jax.ablation.changed_queries import changed_queries
from capret_jax.ablation.conclusions import best_captions, condition_tables, write_conclusion
from capret_jax.ablation.contrasts import contrasts_of
from capret_jax.ablation.forest_plot import forest_plot
from capret_jax.ablation.grid import Grid
from capret_jax.ablation.results import read_costs, read_table, summarize_arms
from capret_jax.datasets import Dataset
from capret_jax.evaluation.templates import render


def write_results(grid: Grid, dataset: Dataset, workdir: pathlib.Path, read_by: tuple) -> dict:
    """Writes `ablation.json`, `report.html` and `report.md` into the ablation's folder.

    Args:
        grid: the cells, all of them done.
        dataset: the dataset of `config.experiment`.
        workdir: the folder.
        read_by: captions, objects and stage of the embeddings that read captions.

    Returns:
        The content of `ablation.json`: "conclusion", sentences; "arms", "contrasts", "boxes",
        "conditions", "costs", "audit", "seeds", "queries", "identities" and "pairs".

    Raises:
        InputError: a cell is not done.
    """
    table = read_table(grid, workdir, dataset.validation.items)
    contrasts = contrasts_of(table, read_by)
    queries, seeds = len(table.clusters), len(grid.seeds)
    results: dict[str, Any] = {
        "conclusion": write_conclusion(contrasts, queries, seeds),
        "arms": summarize_arms(table),
        "contrasts": [contrast.as_dict() for contrast in contrasts],
        "boxes": box_scores(grid, workdir),
        "conditions": condition_tables(table, contrasts),
        "costs": read_costs(grid),
        "audit": audit(grid, dataset, workdir / "hashes"),
        "seeds": list(grid.seeds),
        "queries": queries,
        "identities": len(np.unique(table.queries["identity"])),
        "pairs": len(np.unique(table.clusters)),
    }
    (workdir / "ablation.json").write_text(json.dumps(results, indent=2) + "\n")
    best = best_captions(contrasts, "fine_tuned") or best_captions(contrasts, "zero_shot")
    changes = {}
    if best:
        changes = changed_queries(grid, workdir, table, dataset.validation, best)
    plot = forest_plot(contrasts)
    for name in ("report.html", "report.md"):
        template = pathlib.Path(__file__).with_name(f"{name}.jinja")
        page = render(template, **results, best=best, changes=changes, plot=plot)
        (workdir / name).write_text(page)
    return results
