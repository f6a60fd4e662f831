"""Queries and gallery, derived from annotations or read from the official files."""

import json

import numpy as np
import pytest

from capret_jax.errors import InputError
from capret_jax.evaluation.protocol import (
    derive_ground_truth,
    make_protocol,
    read_ground_truth,
)


@pytest.fixture(scope="module")
def items(splits):
    return splits["validation"].items


def write_official_files(folder, queries, gallery):
    (folder / "val_query.json").write_text(json.dumps(queries))
    (folder / "val_gallery.json").write_text(json.dumps(gallery))


def test_the_derived_ground_truth_has_every_item(items):
    ground_truth = derive_ground_truth(items)
    assert len(ground_truth.queries) == (~items.is_shop).sum()
    assert len(ground_truth.gallery) == items.is_shop.sum()
    protocol = make_protocol(items)
    expected = np.flatnonzero(~items.is_shop & (items["style"] > 0))
    np.testing.assert_array_equal(protocol.queries, expected)
    np.testing.assert_array_equal(protocol.gallery, np.flatnonzero(items.is_shop))
    for entry, row in zip(protocol.query_entries(), protocol.queries, strict=True):
        assert entry["bbox"] == items.box[row].tolist()
        assert entry["query_image_id"] == items["image_id"][row]


def test_official_files_define_the_order_and_the_subset_of_items(items, tmp_path):
    derived = derive_ground_truth(items)
    # Rounded boxes, another order, an item that the dataset lacks, and half of the gallery.
    queries = [q | {"bbox": [round(x) for x in q["bbox"]]} for q in derived.queries[::-1]]
    absent = next(q for q in queries if q["style"] > 0) | {"query_image_id": 999_999}
    write_official_files(tmp_path, [absent, *queries], derived.gallery[::2])
    protocol = make_protocol(items, read_ground_truth(tmp_path))
    full = make_protocol(items)
    np.testing.assert_array_equal(protocol.queries, full.queries[::-1])
    np.testing.assert_array_equal(protocol.query_positions, 1 + np.arange(len(full.queries)))
    np.testing.assert_array_equal(protocol.gallery, full.gallery[::2])
    np.testing.assert_array_equal(protocol.query_identity, full.query_identity[::-1])


def test_entries_with_boxes_elsewhere_match_no_item(items):
    derived = derive_ground_truth(items)
    moved = [q | {"bbox": [x + 1000 for x in q["bbox"]]} for q in derived.queries]
    with pytest.raises(InputError, match="name no item of the validation split"):
        make_protocol(items, derived._replace(queries=moved))


def test_without_both_files_there_is_no_official_ground_truth(tmp_path):
    assert read_ground_truth(tmp_path) is None
    (tmp_path / "val_query.json").write_text("[]")
    assert read_ground_truth(tmp_path) is None


def test_files_with_other_content_raise(tmp_path):
    write_official_files(tmp_path, [{"image": 1}], [])
    with pytest.raises(InputError, match="val_query.json: entry 0 has no 'query_image_id'"):
        read_ground_truth(tmp_path)
