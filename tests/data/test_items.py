"""The item table of the mini dataset."""

import numpy as np

from capret_jax.data.batch import NO_IDENTITY
from capret_jax.data.items import ItemTable


def table(pair_id, style, is_shop):
    count = len(pair_id)
    columns = {name: np.zeros(count, np.int64) for name in ("image_id", "category_id", "scale")}
    return ItemTable(
        record=np.arange(count),
        is_shop=np.array(is_shop, bool),
        box=np.zeros((count, 4), np.float32),
        attributes=columns | {"pair_id": np.array(pair_id), "style": np.array(style)},
    )


def test_an_identity_is_a_pair_and_a_style_above_zero():
    items = table([3, 3, 3, 9, 9], [1, 2, 1, 0, 1], [1, 1, 0, 1, 0])
    np.testing.assert_array_equal(items.identities(), [0, 1, 0, NO_IDENTITY, 2])


def test_training_identities_have_been_seen_by_both_sources():
    items = table([3, 3, 3, 9, 9, 8, 8], [1, 2, 1, 0, 1, 5, 5], [1, 1, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(
        items.training_identities(), [0, NO_IDENTITY, 0, NO_IDENTITY, NO_IDENTITY, 1, 1]
    )


def test_rows_agree_with_the_records(splits):
    split = splits["validation"]
    for row in range(0, len(split.items), 7):
        annotation = split.records.annotation(int(split.items.record[row]))
        attributes = split.items.attributes_of(row)
        assert annotation["image_id"] == attributes["image_id"]
        assert split.items.is_shop[row] == (annotation["source"] == b"shop")
        boxes = np.stack(annotation["items"]["bounding_box"])
        assert (boxes == split.items.box[row]).all(axis=1).any()


def test_every_item_of_every_record_has_a_row(splits):
    for split in splits.values():
        count = sum(
            len(split.records.annotation(i)["items"]["style"]) for i in range(len(split.records))
        )
        assert count == len(split.items)
