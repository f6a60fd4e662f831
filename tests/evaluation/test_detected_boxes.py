"""The protocol with detected boxes, on a case with a known result."""

import json

import numpy as np
import pytest

from capret_jax.config import MeshConfig
from capret_jax.data.items import ItemTable
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.evaluation.detected_boxes import rank_detections, read_detections
from capret_jax.evaluation.protocol import make_protocol

LEFT, RIGHT = [0, 0, 10, 10], [20, 0, 30, 10]
# Image 1 is a consumer's, with a top (pair 5, style 1) and trousers (pair 5, style 2). Images 2 to
# 4 are the shop's: 2 and 3 show the top, 3 the trousers beside it, 4 an item without identity.
ROWS = [
    # image, shop, box, category, style
    (1, False, LEFT, 1, 1),
    (1, False, RIGHT, 8, 2),
    (2, True, LEFT, 1, 1),
    (3, True, LEFT, 1, 1),
    (3, True, RIGHT, 8, 2),
    (4, True, LEFT, 2, 0),
]


@pytest.fixture(scope="module")
def items():
    image, shop, box, category, style = (np.array(column) for column in zip(*ROWS, strict=True))
    attributes = {"image_id": image, "category_id": category, "style": style}
    return ItemTable(image - 1, shop, box, attributes | {"pair_id": np.full(6, 5)})


def detection(image, box, category, score):
    x1, y1, x2, y2 = box
    bbox = [x1, y1, x2 - x1, y2 - y1]
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


# Not in the order of the images: rows become 0, 1 (image 1), 2 (2), 3, 4, 5 (3), 6 (4).
ENTRIES = [
    detection(3, LEFT, 1, 0.9),  # row 3, the top
    detection(1, LEFT, 1, 0.8),  # row 0, assigned to the top
    detection(3, [1, 0, 11, 10], 1, 0.7),  # row 4, the top again, with a lower score
    detection(2, [5, 0, 15, 10], 1, 0.6),  # row 2, overlaps the top by a third only
    detection(3, RIGHT, 8, 0.9),  # row 5, the trousers
    detection(4, LEFT, 2, 0.9),  # row 6, the distractor
    detection(1, RIGHT, 1, 0.9),  # row 1, overlaps the trousers but has another class: not assigned
    detection(77, LEFT, 1, 0.9),  # a photograph that the split lacks
]


@pytest.fixture
def detections(items, tmp_path):
    (tmp_path / "detections.json").write_text(json.dumps(ENTRIES))
    return read_detections(tmp_path / "detections.json", items)


def test_detections_are_sorted_by_photograph(detections):
    np.testing.assert_array_equal(detections.items["image_id"], [1, 1, 2, 3, 3, 3, 4])
    np.testing.assert_array_equal(detections.scores, [0.8, 0.9, 0.6, 0.9, 0.7, 0.9, 0.9])
    np.testing.assert_array_equal(detections.items.box[2], [5, 0, 15, 10])
    np.testing.assert_array_equal(detections.items.is_shop, [0, 0, 1, 1, 1, 1, 1])
    assert detections.skipped == 1


def test_rankings_of_detected_boxes(detections, items):
    # The query is row 0; the cosines order the shop's detections 2, 4, 3, 5, 6.
    cosines = [1.0, 0.0, 0.9, 0.7, 0.8, 0.6, 0.5]
    embeddings = np.stack([cosines, np.sqrt(1 - np.square(cosines))], 1).astype(np.float32)
    protocol = make_protocol(items)
    ranking = rank_detections(detections, embeddings, protocol, make_mesh(MeshConfig()))
    # The top: row 2 is not relevant (IoU 1/3), rows 4 and 3 are of image 3. For the official scorer
    # row 4 is relevant, at rank 1 (from 0). For average precision only the more confident row 3 is,
    # at rank 2: precision 1/3. The top of image 2 has no detection, so AP = (1/3) / 2. The trousers
    # have no assigned detection.
    np.testing.assert_array_equal(ranking.first, [1, 20])
    np.testing.assert_allclose(ranking.precision, [1 / 6, 0])
    assert [entry["query_score"] for entry in ranking.results] == [0.8, 0.9]
    assert ranking.results[0]["gallery_image_id"] == [2, 3, 3, 3, 4]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cannot be read"),
        ("[]", "must hold a list of detections"),
        ('[{"image_id": 1}]', "entry 0 is no detection"),
        (json.dumps([detection(1, [5, 5, 5, 9], 1, 0.5)]), "entry 0 is no detection"),
        (json.dumps([detection(1, LEFT, 14, 0.5)]), "entry 0 is no detection"),
        (json.dumps([detection(1, LEFT, 1, 0.5)]), "no detection in any of the split's shop"),
    ],
)
def test_files_with_other_content_raise(content, message, items, tmp_path):
    (tmp_path / "detections.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_detections(tmp_path / "detections.json", items)
