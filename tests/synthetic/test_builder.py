"""The synthetic data set, as it is written and read back."""

import io
from collections import Counter

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from capret_jax.data import schema
from capret_jax.synthetic import builder as synthetic
from capret_jax.synthetic import pool

SPLITS = ("train", "validation")
CONFIGS = synthetic.SyntheticFashion.builder_configs


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    # What an interrupted preparation leaves behind.
    stale = directory / "synthetic_fashion" / "mini" / "incomplete.ABCDEF_1.1.0"
    stale.mkdir(parents=True)
    (stale / "synthetic_fashion-train.array_record-00000-of-00001").write_bytes(b"half")
    return synthetic.prepare(directory, "mini")


@pytest.fixture(scope="module")
def records(builder):
    decoders = {"image": tfds.decode.SkipDecoding()}
    return {split: list(builder.as_data_source(split, decoders=decoders)) for split in SPLITS}


def identities(split_records) -> Counter:
    """(pair_id, style, source) of every item with an identity -> its number of photographs."""
    return Counter(
        (int(record["pair_id"]), int(style), record["source"].decode())
        for record in split_records
        for style in record["items"]["style"]
        if style > 0
    )


def test_second_call_opens_what_is_there(builder, monkeypatch):
    monkeypatch.setattr(pool, "draw_all", None)
    again = synthetic.prepare(builder.data_dir_root, "mini")
    assert again.info.splits["train"].num_examples == builder.info.splits["train"].num_examples


@pytest.mark.parametrize("split", SPLITS)
def test_same_bytes_whatever_the_number_of_processes(records, split):
    drawn = pool.draw_all(CONFIGS["mini"].entries(split), workers=1)
    drawn = [record["image"] for garment in drawn for record in garment]
    stored = sorted(records[split], key=lambda record: record["image_id"])
    assert [record["image"] for record in stored] == drawn


def test_validation_identities_are_never_in_training(records):
    pairs = {split: {pair for pair, _, _ in identities(records[split])} for split in SPLITS}
    assert pairs["train"] and pairs["validation"]
    assert not pairs["train"] & pairs["validation"]


@pytest.mark.parametrize(("split", "count", "views"), [("train", 12, 3), ("validation", 6, 2)])
def test_identities_have_all_views_of_both_sources(records, split, count, views):
    counts = identities(records[split])
    assert set(counts.values()) == {views}
    assert Counter(source for *_, source in counts) == {"shop": count, "user": count}


def test_distractors_are_shop_images_without_identity(records):
    shop = [record for record in records["validation"] if record["source"] == b"shop"]
    assert sum(record["items"]["style"] == [0] for record in shop) == 4


def test_singles_are_one_photograph_of_every_category_without_identity():
    entries = [entry for entry in CONFIGS["mini"].entries("train") if not entry.style]
    assert [entry.garment.category_id for entry in entries] == list(range(1, 14))
    assert all(entry.shop_views + entry.user_views == 1 for entry in entries)
    # The shop's and users' photographs take turns.
    shop = sum(entry.shop_views for entry in CONFIGS["demo"].entries("train") if not entry.style)
    assert shop == pytest.approx(3000, abs=13)


def test_image_ids_are_unique(records):
    ids = [record["image_id"] for split in SPLITS for record in records[split]]
    assert len(ids) == 12 * 6 + 13 + 6 * 4 + 4
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("split", SPLITS)
def test_items_are_valid(records, split):
    for record in records[split]:
        width, height = Image.open(io.BytesIO(record["image"])).size
        items = record["items"]
        for x1, y1, x2, y2 in items["bounding_box"]:
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        assert all(1 <= category <= len(schema.CATEGORIES) for category in items["category_id"])
        for name in schema.LEVELS:
            assert set(items[name]) <= {1, 2, 3}


def test_large_items_take_more_of_the_picture_than_small_ones(records):
    shares = {1: [], 2: [], 3: []}
    for record in records["train"]:
        area = np.prod(Image.open(io.BytesIO(record["image"])).size)
        items = record["items"]
        for scale, box in zip(items["scale"], items["bounding_box"], strict=True):
            shares[int(scale)].append(np.prod(box[2:] - box[:2]) / area)
    assert max(shares[1], default=0) < min(shares[2]) <= max(shares[2]) < min(shares[3])


@pytest.mark.parametrize("split", SPLITS)
def test_demo_has_every_category(split):
    entries = CONFIGS["demo"].entries(split)
    assert {entry.garment.category_id for entry in entries if entry.style} == set(range(1, 14))


def test_failed_worker_is_reported(capfd):
    with pytest.raises(RuntimeError, match="a drawing process stopped early, exit status 1"):
        list(pool.draw_all(["no entry"], workers=1))
    assert "AttributeError" in capfd.readouterr().err
