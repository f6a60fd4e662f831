"""Who asks and who answers: derived from annotations, or named by the official files."""

import json

import numpy as np
import pytest

from capret_jax.errors import InputError
from capret_jax.evaluation.protocol import derive_truth, make_protocol, read_truth


@pytest.fixture(scope="module")
def items(splits):
    return splits["validation"].items


def write(folder, queries, gallery):
    (folder / "val_query.json").write_text(json.dumps(queries))
    (folder / "val_gallery.json").write_text(json.dumps(gallery))


def test_the_derived_truth_names_every_item(items):
    truth = derive_truth(items)
    assert (
        len(truth.queries) == (~items.is_shop).sum() and len(truth.gallery) == items.is_shop.sum()
    )
    protocol = make_protocol(items)
    assert (items["style"][protocol.queries] > 0).all() and not items.is_shop[
        protocol.queries
    ].any()
    np.testing.assert_array_equal(protocol.gallery, np.flatnonzero(items.is_shop))
    for entry, row in zip(protocol.asked(), protocol.queries, strict=True):
        assert entry["bbox"] == items.box[row].tolist()


def test_official_files_decide_the_order_and_who_takes_part(items, tmp_path):
    derived = derive_truth(items)
    # Rounded boxes, another order, an item that the dataset lacks, and half of the gallery.
    queries = [q | {"bbox": [round(x) for x in q["bbox"]]} for q in derived.queries[::-1]]
    absent = next(q for q in queries if q["style"] > 0) | {"query_image_id": 999_999}
    write(tmp_path, [absent, *queries], derived.gallery[::2])
    protocol = make_protocol(items, read_truth(tmp_path))
    usual = make_protocol(items)
    np.testing.assert_array_equal(protocol.queries, usual.queries[::-1])
    np.testing.assert_array_equal(protocol.place, 1 + np.arange(len(usual.queries)))
    np.testing.assert_array_equal(protocol.gallery, usual.gallery[::2])
    np.testing.assert_array_equal(protocol.query_identity, usual.query_identity[::-1])


def test_a_box_elsewhere_is_another_item(items):
    truth = derive_truth(items)
    moved = [q | {"bbox": [x + 1000 for x in q["bbox"]]} for q in truth.queries]
    with pytest.raises(InputError, match="name no item of the validation split"):
        make_protocol(items, truth._replace(queries=moved))


def test_without_files_there_is_no_official_truth(tmp_path):
    assert read_truth(tmp_path) is None
    (tmp_path / "val_query.json").write_text("[]")
    assert read_truth(tmp_path) is None


def test_files_of_something_else_are_refused(tmp_path):
    write(tmp_path, [{"image": 1}], [])
    with pytest.raises(InputError, match="val_query.json: entry 0 has no 'query_image_id'"):
        read_truth(tmp_path)
