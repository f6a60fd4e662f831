"""Grounding evaluator: accuracy of the boxes of phrases."""

from typing import Any

import jax
import numpy as np

from capret_jax.models.x2vlm import X2VLM, normalize_pixels
from capret_jax.tasks.evaluators.grouping import PictureGroups
from capret_jax.tasks.evaluators.inputs import EvaluationInputs, TaskResults
from capret_jax.tasks.evaluators.mesh_model import MeshFunction
from capret_jax.tasks.evaluators.pictures import picture_batches
from capret_jax.tasks.evaluators.texts import stack_tokens
from capret_jax.tasks.examples import ReferringExpression
from capret_jax.tasks.scorers.boxes import box_accuracy

# Phrases that are fused with a picture at a time.
_PHRASES = 4


class GroundingMeasurement:
    """Predicts the box of each phrase from the fusion of picture and phrase."""

    def __init__(self, run: EvaluationInputs):
        self._run, self._predict = run, MeshFunction(run.config, run.mesh, _predict)

    def __call__(self, params: dict) -> TaskResults:
        """Measures a model; every process has to call it.

        Returns:
            "accuracy" at an IoU of 0.5, and "phrases"; the file `boxes.json` has the boxes as
            [{"ref_id", "text", "box": [x, y, w, h]}], in pixels.
        """
        run, rows = self._run, self._run.test.rows
        groups = PictureGroups([row.image for row in rows], _PHRASES)
        tokens = stack_tokens(run.encode, [row.text for row in rows])
        texts = [x[groups.rows] for x in tokens]
        batches = picture_batches(run, groups.paths, texts)
        boxes = self._predict.by_row(params, batches, len(groups.paths))
        boxes = to_pixels(groups.by_text(boxes), np.array([row.size for row in rows]))
        metrics = {
            "accuracy": box_accuracy(boxes, np.array([row.box for row in rows])),
            "phrases": len(rows),
        }
        return TaskResults(metrics, {"boxes.json": [*map(_entry, rows, boxes)]})


def to_pixels(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Converts boxes from fractions to pixels.

    Args:
        boxes: (n, 4) cx, cy, w, h as fractions of the picture.
        size: (n, 2) width and height of the pictures, pixels.

    Returns:
        (n, 4) float64 x, y, w, h in pixels.
    """
    centre, sides = np.asarray(boxes, np.float64)[:, :2], np.asarray(boxes, np.float64)[:, 2:]
    return np.concatenate([centre - sides / 2, sides], axis=1) * np.tile(size, 2)


def _predict(model: X2VLM, batch) -> jax.Array:
    image, (ids, mask) = batch
    flat = [x.reshape(-1, x.shape[-1]) for x in (ids, mask)]
    text = model.encode_text(*flat)
    fused = model.fuse(text, flat[1], model.encode_image(normalize_pixels(image)))
    return model.predict_boxes(fused).reshape(*ids.shape[:2], 4)


def _entry(row: ReferringExpression, box: np.ndarray) -> dict[str, Any]:
    return {"ref_id": row.ref_id, "text": row.text, "box": box.round(2).tolist()}
