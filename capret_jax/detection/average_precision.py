"""COCO's average precision of detections, computed by pycocotools."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from capret_jax.data.items import ItemTable
from capret_jax.data.schema import CATEGORIES
from capret_jax.detection.detector import Detection

# The first entries of COCOeval.stats: over IoU 0.50:0.95, at 0.50 and at 0.75.
_NAMES = ("AP", "AP50", "AP75")


def coco_entries(image_ids: Sequence[int], detections: Sequence[Sequence[Detection]]) -> list[dict]:
    """Converts detections to COCO's result format.

    Args:
        image_ids: (n,) int image ids of the photographs.
        detections: the detections of each photograph.
    """
    return [
        {
            "image_id": int(image),
            "category_id": detection.category_id,
            "bbox": _corner_and_sides(detection.box),
            "score": detection.score,
        }
        for image, in_image in zip(image_ids, detections, strict=True)
        for detection in in_image
    ]


def average_precision(entries: list[dict], items: ItemTable) -> dict[str, float]:
    """Computes mAP over the categories present, with up to 100 boxes per photograph.

    Args:
        entries: detections in COCO's result format, in photographs of `items` only.
        items: the ground truth: all items of all photographs that the detector was run on.

    Returns:
        "AP" (mean over IoU 0.50, 0.55 ... 0.95), "AP50" and "AP75"; all 0 without detections.
    """
    return coco_precision(entries, _dataset(items))


def coco_precision(entries: list[dict], dataset: dict) -> dict[str, float]:
    """Computes mAP over the categories present, see `average_precision`.

    Args:
        entries: detections in COCO's result format, in the dataset's images only.
        dataset: the ground truth in COCO's annotation format.
    """
    if not entries:
        return dict.fromkeys(_NAMES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco = COCO()
        coco.dataset = {"info": {}} | dataset
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(entries), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(_NAMES, map(float, evaluation.stats), strict=False))


def _dataset(items: ItemTable) -> dict:
    """Converts the ground truth to COCO's annotation format."""
    images = np.unique(items["image_id"])
    annotations = []
    for row in range(len(items)):
        x, y, width, height = _corner_and_sides(items.box[row])
        annotations.append(
            {
                "id": row + 1,  # COCOeval uses 0 for "no match"
                "image_id": int(items["image_id"][row]),
                "category_id": int(items["category_id"][row]),
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": 0,
            }
        )
    return {
        "images": [{"id": int(image)} for image in images],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)],
        "annotations": annotations,
    }


def _corner_and_sides(box: np.ndarray) -> list[float]:
    """Converts (4,) x1, y1, x2, y2 to x, y, width, height."""
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2 - x1, y2 - y1]
