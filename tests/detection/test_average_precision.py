"""COCO's average precision on cases that can be worked out."""

import dataclasses

import numpy as np
import pytest

from capret_jax.detection.average_precision import average_precision, coco_entries
from capret_jax.detection.phrases import Detection


@pytest.fixture(scope="module")
def truth(splits):
    """Two photographs' items."""
    items = splits["validation"].items
    rows = np.flatnonzero(items.record < 2)
    return dataclasses.replace(
        items,
        record=items.record[rows],
        is_shop=items.is_shop[rows],
        box=items.box[rows],
        attributes={name: column[rows] for name, column in items.attributes.items()},
    )


def entries(truth, change=lambda box: box):
    return coco_entries(
        truth["image_id"],
        [
            [Detection(int(truth["category_id"][row]), change(truth.box[row]), 0.9)]
            for row in range(len(truth))
        ],
    )


def test_the_truth_is_perfect(truth):
    assert average_precision(entries(truth), truth) == pytest.approx(
        {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}
    )


def test_boxes_that_overlap_by_062_count_up_to_060(truth):
    def lower(box):
        # 0.62 of the height: IoU 0.62, right at 0.50, 0.55 and 0.60 of ten thresholds.
        return np.array([box[0], box[1], box[2], box[1] + 0.62 * (box[3] - box[1])])

    found = average_precision(entries(truth, lower), truth)
    assert found == pytest.approx({"AP": 0.3, "AP50": 1.0, "AP75": 0.0}, abs=1e-6)


def test_nothing_found_is_zero(truth):
    assert average_precision([], truth)["AP"] == 0
    wrong = [entry | {"category_id": 14 - entry["category_id"]} for entry in entries(truth)]
    if all(truth["category_id"] != 7):  # its own mirror image
        assert average_precision(wrong, truth)["AP50"] < 1
