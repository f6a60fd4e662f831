"""Average precision of detections, by COCO's definition and its own code (pycocotools)."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from capret_jax.data.items import ItemTable
from capret_jax.data.schema import CATEGORIES

# What COCO prints first: over IoU 0.50:0.95, at 0.50 and at 0.75.
_NAMES = ("AP", "AP50", "AP75")


def coco_entries(image_ids: Sequence[int], found: Sequence[Sequence]) -> list[dict]:
    """Detections in COCO's result format.

    Args:
        image_ids: of each photograph.
        found: its `phrases.Detection`s.
    """
    return [
        {
            "image_id": int(image),
            "category_id": detection.category_id,
            "bbox": _corner_and_sides(detection.box),
            "score": detection.score,
        }
        for image, detections in zip(image_ids, found, strict=True)
        for detection in detections
    ]


def average_precision(entries: list[dict], truth: ItemTable) -> dict[str, float]:
    """Mean average precision over the categories that there are, up to 100 boxes a photograph.

    Args:
        entries: detections in COCO's result format; in photographs of `truth` only.
        truth: the items of all photographs looked at.

    Returns:
        "AP" (mean over IoU 0.50, 0.55 ... 0.95), "AP50" and "AP75"; all 0 without detections.
    """
    if not entries:
        return dict.fromkeys(_NAMES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        coco = COCO()
        coco.dataset = _dataset(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(entries), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(_NAMES, map(float, evaluation.stats), strict=False))


def _dataset(truth: ItemTable) -> dict:
    images = np.unique(truth["image_id"])
    annotations = []
    for row in range(len(truth)):
        x, y, width, height = _corner_and_sides(truth.box[row])
        annotations.append(
            {
                "id": row + 1,  # COCO takes 0 for no match
                "image_id": int(truth["image_id"][row]),
                "category_id": int(truth["category_id"][row]),
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": 0,
            }
        )
    return {
        "info": {},
        "images": [{"id": int(image)} for image in images],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)],
        "annotations": annotations,
    }


def _corner_and_sides(box: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2 - x1, y2 - y1]
