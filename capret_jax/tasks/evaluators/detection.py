"""Detection evaluator: COCO's average precision of the boxes that the model writes."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from capret_jax.detection.average_precision import coco_precision
from capret_jax.errors import InputError
from capret_jax.models.location_generation import write_locations
from capret_jax.models.x2vlm import X2VLM, normalize_pixels
from capret_jax.tasks.evaluators.inputs import EvaluationInputs, TaskResults
from capret_jax.tasks.evaluators.mesh_model import MeshFunction
from capret_jax.tasks.evaluators.pictures import picture_batches
from capret_jax.tasks.readers.annotations import load_json
from capret_jax.tasks.readers.instances import read_categories

# Share of the probability that tokens are drawn from, as in Pix2Seq.
_TOP_P = 0.4
# Detections of a picture that COCO counts.
_MOST = 100


class DetectionMeasurement:
    """Writes the objects of each picture."""

    def __init__(self, run: EvaluationInputs):
        """
        Args:
            run: pictures with their objects.

        Raises:
            InputError: the model writes another number of classes than the file has categories.
        """
        self._run, self._categories = run, read_categories(run.config.task.test)
        count, wanted = len(self._categories.ids), run.config.model.location_classes
        if count != wanted:
            raise InputError(
                f"{run.config.task.test} has {count} categories, and the model writes {wanted} "
                f"classes: set --config.model.location_classes={count}."
            )
        self._write = MeshFunction(run.config, run.mesh, _write)

    def __call__(self, params: dict) -> TaskResults:
        """Detects objects in all pictures; every process has to call it.

        Returns:
            "AP", "AP50", "AP75", and "pictures"; the file `detections.json` is in COCO's result
            format, [{"image_id", "category_id", "bbox", "score"}].
        """
        run, rows = self._run, self._run.test.rows
        batches = picture_batches(run, [row.image for row in rows])
        boxes, probabilities = self._write.by_row(params, batches, len(rows))
        annotated = load_json(run.config.task.test)
        sizes = {image["id"]: (image["width"], image["height"]) for image in annotated["images"]}
        entries = []
        for row, *objects in zip(rows, boxes, probabilities, strict=True):
            entries += self._entries(row.image_id, sizes[row.image_id], *objects)
        known = {row.image_id for row in rows}
        dataset = annotated | {
            "images": [image for image in annotated["images"] if image["id"] in known],
            "annotations": _completed(
                x for x in annotated["annotations"] if x["image_id"] in known
            ),
        }
        metrics: dict[str, Any] = {**coco_precision(entries, dataset), "pictures": len(rows)}
        return TaskResults(metrics, {"detections.json": entries})

    def _entries(
        self, image_id: int, size: tuple[int, int], boxes: np.ndarray, probabilities: np.ndarray
    ) -> list[dict]:
        """Converts N boxes, (N, 4) and (N, C), to COCO's result format: the best of all classes."""
        scale = np.tile(np.array(size, np.float64), 2)
        corner = (boxes[:, :2].astype(np.float64) - boxes[:, 2:] / 2) * scale[:2]
        corners = np.concatenate([corner, boxes[:, 2:] * scale[2:]], axis=1).round(2)
        best = np.argsort(-probabilities, axis=None, kind="stable")[:_MOST]
        return [
            {
                "image_id": image_id,
                "category_id": self._categories.ids[number],
                "bbox": corners[row].tolist(),
                "score": round(float(probabilities[row, number]), 5),
            }
            for row, number in zip(*np.unravel_index(best, probabilities.shape), strict=True)
        ]


def _completed(annotations: Iterable[dict]) -> list[dict]:
    """Returns annotations with ids from 1, and with what COCOeval reads and small files lack."""
    return [
        {"area": x["bbox"][2] * x["bbox"][3], "iscrowd": 0, **x, "id": number}
        for number, x in enumerate(annotations, 1)
    ]


def _write(model: X2VLM, batch) -> tuple[jax.Array, jax.Array]:
    image, _ = batch
    keys = jnp.broadcast_to(jax.random.key(0), (len(image),))
    states = model.encode_image(normalize_pixels(image))
    written = write_locations(model, states, keys, _TOP_P)
    return written.boxes, written.probabilities
