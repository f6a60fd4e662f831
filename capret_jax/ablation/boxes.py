"""Comparison of an objects arm's box loss with the best box that does not depend on the picture."""

import contextlib
import json
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np

from capret_jax.ablation.grid import IMAGE, Cell, EvaluationRun, Grid
from capret_jax.config import ExperimentConfig
from capret_jax.losses.box import corners, iou_and_giou
from capret_jax.train.run import Run

# Boxes of training views that the constant box is fitted to.
_BOXES = 400


def box_scores(grid: Grid, workdir: pathlib.Path) -> list[dict]:
    """Compares the boxes that cells predict in training with the best constant ones.

    Args:
        grid: the cells, all of them done.
        workdir: folder of the ablation.

    Returns:
        A row for each objects arm and stage with a box loss: "objects", "stage"; "constant_iou",
        the mean IoU of the median box with the boxes of its training views; and "iou", that of the
        predicted boxes over the last logged steps, a mean over captions and seeds.
    """
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in grid.cells:
        if cell.embedding == IMAGE and _config_of(grid, cell).loss.box:
            groups.setdefault((cell.objects, cell.stage), []).append(cell)
    return [
        {
            "objects": objects,
            "stage": stage,
            "constant_iou": _constant_iou(_training_boxes(_config_of(grid, cells[0]))),
            "iou": float(np.mean([_last_iou(workdir / "cells" / cell.folder) for cell in cells])),
        }
        for (objects, stage), cells in groups.items()
    ]


def _config_of(grid: Grid, cell: Cell) -> ExperimentConfig:
    return grid.config_of(EvaluationRun(cell, grid.caption_sources(cell)[0]))


def _training_boxes(config: ExperimentConfig) -> np.ndarray:
    """Returns (n, 4) float32 cx, cy, w, h of the first training views whose boxes count."""
    boxes: list[np.ndarray] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config, pathlib.Path(folder))
        with contextlib.closing(run.training_batches()) as batches:
            for batch in batches:
                boxes += list(batch.box[batch.counted_boxes])
                if len(boxes) >= _BOXES:
                    break
        run.checkpoints.close()
    return np.array(boxes)


def _constant_iou(boxes: np.ndarray) -> float:
    """Returns the mean IoU of the median box with (n, 4) boxes."""
    constant = jnp.asarray(np.median(boxes, axis=0))
    iou, _ = iou_and_giou(corners(constant), corners(jnp.asarray(boxes)))
    return float(iou.mean())


def _last_iou(folder: pathlib.Path) -> float:
    """Returns the IoU of the predicted boxes over a cell's last logged steps."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row["box_giou/iou"] for row in map(json.loads, lines) if "box_giou/iou" in row][-1]
