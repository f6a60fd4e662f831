"""The item table: identities, agreement with the records, and the table kept on disk."""

import dataclasses
import errno
import os
import pickle
import shutil

import numpy as np
import pytest

from capret_jax.config import DataConfig, ReadConfig
from capret_jax.data import items as items_module
from capret_jax.data.batch import NO_IDENTITY
from capret_jax.data.items import ItemTable
from capret_jax.data.records import Records
from capret_jax.datasets import open_dataset


def table(pair_id, style, is_shop):
    count = len(pair_id)
    columns = {name: np.zeros(count, np.int64) for name in ("image_id", "category_id", "scale")}
    return ItemTable(
        record=np.arange(count),
        is_shop=np.array(is_shop, bool),
        box=np.zeros((count, 4), np.float32),
        attributes=columns
        | {"pair_id": np.array(pair_id, np.int64), "style": np.array(style, np.int64)},
    )


def test_an_identity_is_a_pair_and_a_style_above_zero():
    items = table([3, 3, 3, 9, 9], [1, 2, 1, 0, 1], [1, 1, 0, 1, 0])
    np.testing.assert_array_equal(items.identities(), [0, 1, 0, NO_IDENTITY, 2])


def test_training_identities_are_seen_by_both_sources():
    items = table([3, 3, 3, 9, 9, 8, 8], [1, 2, 1, 0, 1, 5, 5], [1, 1, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(
        items.training_identities(), [0, NO_IDENTITY, 0, NO_IDENTITY, NO_IDENTITY, 1, 1]
    )


@pytest.mark.parametrize("count", [0, 1, 500])
def test_identities_are_numbered_in_the_order_of_pair_and_style(count):
    rng = np.random.default_rng(count)
    items = table(*(rng.integers(0, high, count) for high in (60, 3, 2)))
    pairs = list(zip(items["pair_id"].tolist(), items["style"].tolist(), strict=True))
    distinct = sorted({pair for pair in pairs if pair[1]})
    expected = [distinct.index(pair) if pair[1] else NO_IDENTITY for pair in pairs]
    np.testing.assert_array_equal(items.identities(), expected)
    shop, user = ({p for p, s in zip(pairs, items.is_shop, strict=True) if s == k} for k in (1, 0))
    both = [pair for pair in distinct if pair in shop & user]
    expected = [both.index(pair) if pair in both else NO_IDENTITY for pair in pairs]
    np.testing.assert_array_equal(items.training_identities(), expected)


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


@pytest.fixture
def prepared(prepared_dir, tmp_path):
    """A copy of the mini dataset without kept tables: its config and its folder."""
    shutil.copytree(prepared_dir, tmp_path / "data")
    for kept in (tmp_path / "data").rglob("items_*.npz"):
        kept.unlink()
    config = DataConfig(variant="mini", prepared_dir=str(tmp_path / "data"))
    [folder] = (tmp_path / "data" / "synthetic_fashion" / "mini").iterdir()
    return config, folder


@pytest.fixture
def parsed(monkeypatch):
    """The records whose annotation was parsed."""
    calls = []
    original = Records.annotation

    def annotation(records, index):
        calls.append((records.split, index))
        return original(records, index)

    monkeypatch.setattr(Records, "annotation", annotation)
    return calls


def assert_same_items(actual, expected):
    for name in ("record", "is_shop", "box"):
        column = getattr(actual, name)
        assert column.dtype == getattr(expected, name).dtype
        np.testing.assert_array_equal(column, getattr(expected, name))
    assert list(actual.attributes) == list(expected.attributes)
    for name, column in actual.attributes.items():
        assert column.dtype == np.int64
        np.testing.assert_array_equal(column, expected[name])


def test_a_second_opening_reads_no_annotation(prepared, parsed):
    config, folder = prepared
    first = open_dataset(config)
    assert (
        len(parsed) == len(set(parsed)) == len(first.train.records) + len(first.validation.records)
    )
    assert {path.name for path in folder.glob("items_*")} == {
        "items_train.npz",
        "items_validation.npz",
    }
    parsed.clear()
    second = open_dataset(config)
    assert not parsed
    assert_same_items(second.train.items, first.train.items)
    assert_same_items(second.validation.items, first.validation.items)


def test_changed_records_make_the_table_again(prepared, parsed):
    config, folder = prepared
    first = open_dataset(config)
    [shard] = folder.glob("*validation.array_record*")
    os.utime(shard, ns=(0, 0))
    parsed.clear()
    second = open_dataset(config)
    assert {split for split, _ in parsed} == {"validation"}
    assert_same_items(second.validation.items, first.validation.items)
    parsed.clear()
    open_dataset(config)
    assert not parsed


def test_all_pictures_are_resized_as_the_config_says(prepared):
    config, _ = prepared
    dataset = open_dataset(dataclasses.replace(config, read=ReadConfig(resize="pillow")))
    for split in (dataset.train, dataset.validation):
        for copy in (split, pickle.loads(pickle.dumps(split))):  # of a worker
            assert copy.photograph(0).resize == "pillow"


def test_another_format_makes_the_table_again(prepared, parsed, monkeypatch):
    config, _ = prepared
    open_dataset(config)
    monkeypatch.setattr(items_module, "_FORMAT", 10**6)
    parsed.clear()
    open_dataset(config)
    assert {split for split, _ in parsed} == {"train", "validation"}


@pytest.mark.parametrize("damage", [b"", b"no table", None])
def test_a_damaged_table_is_made_again(prepared, parsed, damage):
    config, folder = prepared
    first = open_dataset(config)
    kept = folder / "items_train.npz"
    content = kept.read_bytes()
    kept.write_bytes(content[: len(content) // 2] if damage is None else damage)
    parsed.clear()
    second = open_dataset(config)
    assert {split for split, _ in parsed} == {"train"}
    assert_same_items(second.train.items, first.train.items)
    assert kept.read_bytes() == content


def test_a_table_of_unequal_columns_is_made_again(prepared, parsed):
    config, folder = prepared
    first = open_dataset(config)
    with np.load(folder / "items_train.npz") as table:
        columns = dict(table)
    np.savez(folder / "items_train.npz", **columns | {"record": columns["record"][:-1]})
    parsed.clear()
    second = open_dataset(config)
    assert {split for split, _ in parsed} == {"train"}
    assert_same_items(second.train.items, first.train.items)


@pytest.mark.parametrize("function", ["open", "replace"])
def test_a_folder_that_cannot_be_written_is_only_read(prepared, monkeypatch, function):
    config, folder = prepared
    before = sorted(folder.iterdir())

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    if function == "open":
        monkeypatch.setattr(items_module, "open", refuse, raising=False)
    else:
        monkeypatch.setattr(items_module.os, "replace", refuse)
    dataset = open_dataset(config)
    assert len(dataset.train.items) and len(dataset.validation.items)
    assert sorted(folder.iterdir()) == before


def test_the_columns_of_a_table_are_those_that_are_kept():
    # A new column of ItemTable must be added to the kept file, and its format number raised.
    fields = [field.name for field in dataclasses.fields(ItemTable)]
    assert fields == ["record", "is_shop", "box", "attributes"]
