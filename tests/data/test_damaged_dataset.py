"""A prepared dataset whose files were damaged: another dataset is never read in silence."""

import shutil

import numpy as np
import pytest

from capret_jax.config import DataConfig
from capret_jax.datasets import Dataset, open_dataset
from capret_jax.errors import InputError
from tests.data.raw_deepfashion2 import write_raw


def content(dataset: Dataset) -> list:
    """Returns everything that training and evaluation read of a dataset."""
    values: list = []
    for split in (dataset.train, dataset.validation):
        values += [split.items.record, split.items.is_shop, split.items.box]
        values += list(split.items.attributes.values())
        values += [split.records.image(index) for index in range(len(split.records))]
    return values


def is_same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(map(np.array_equal, a, b))


@pytest.fixture(scope="module")
def prepared(splits, tmp_path_factory):
    """The config of a prepared dataset, and its content."""
    raw, folder = (tmp_path_factory.mktemp(name) for name in ("raw", "prepared"))
    write_raw(raw, splits)
    config = DataConfig(name="deepfashion2", source_dir=str(raw), prepared_dir=str(folder))
    return folder, content(open_dataset(config))


NAMES = ("report.json", "dataset_info.json", "features.json", "items_train.npz") + tuple(
    f"deepfashion2-{split}.array_record-00000-of-00001" for split in ("train", "validation")
)


@pytest.mark.parametrize("damage", ["flipped", "halved", "emptied", "removed"])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_named_or_changes_nothing(prepared, tmp_path, name, damage):
    folder, expected = prepared
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "deepfashion2" / "1.0.0" / name
    original = path.read_bytes()
    places = np.random.default_rng(0).integers(0, len(original), 12 if damage == "flipped" else 1)
    for place in places:
        if damage == "removed":
            path.unlink()
        elif damage == "flipped":
            data = bytearray(original)
            data[place] ^= 1 << int(place % 7)
            path.write_bytes(data)
        else:
            path.write_bytes(original[: len(original) // 2] if damage == "halved" else b"")
        try:
            dataset = open_dataset(
                DataConfig(name="deepfashion2", prepared_dir=str(tmp_path / "copy"))
            )
            assert is_same(content(dataset), expected), place
        except InputError as error:
            assert str(tmp_path / "copy") in str(error)
