"""COCO's average precision on cases with a known value."""

import dataclasses

import numpy as np
import pytest

from capret_jax.data.schema import CATEGORIES
from capret_jax.detection.average_precision import average_precision, coco_entries
from capret_jax.detection.detector import Detection


@pytest.fixture(scope="module")
def items(splits):
    """The items of two photographs."""
    table = splits["validation"].items
    rows = np.flatnonzero(table.record < 2)
    return dataclasses.replace(
        table,
        record=table.record[rows],
        is_shop=table.is_shop[rows],
        box=table.box[rows],
        attributes={name: column[rows] for name, column in table.attributes.items()},
    )


def entries(items, change=lambda box: box):
    """One detection per item, its ground-truth box changed."""
    return coco_entries(
        items["image_id"],
        [
            [Detection(int(items["category_id"][row]), change(items.box[row]), 0.9)]
            for row in range(len(items))
        ],
    )


def test_entries_have_a_corner_and_sides():
    detections = [[], [Detection(8, np.array([10.0, 20.0, 40.0, 100.0]), 0.5)]]
    assert coco_entries([3, 4], detections) == [
        {"image_id": 4, "category_id": 8, "bbox": [10.0, 20.0, 30.0, 80.0], "score": 0.5}
    ]


def test_ground_truth_boxes_have_perfect_precision(items):
    assert average_precision(entries(items), items) == pytest.approx(
        {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}
    )


def test_boxes_of_iou_062_are_correct_up_to_the_threshold_060(items):
    def lower(box):
        # 0.62 of the height: IoU 0.62, correct at 0.50, 0.55 and 0.60 of ten thresholds.
        return np.array([box[0], box[1], box[2], box[1] + 0.62 * (box[3] - box[1])])

    metrics = average_precision(entries(items, lower), items)
    assert metrics == pytest.approx({"AP": 0.3, "AP50": 1.0, "AP75": 0.0}, abs=1e-6)


def test_precision_is_zero_without_correct_detections(items):
    zero = {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    assert average_precision([], items) == zero
    assert average_precision(entries(items, lambda box: box + 10_000), items) == zero
    absent = np.setdiff1d(np.arange(len(CATEGORIES)) + 1, items["category_id"])[0]
    relabelled = [entry | {"category_id": int(absent)} for entry in entries(items)]
    assert average_precision(relabelled, items) == zero
