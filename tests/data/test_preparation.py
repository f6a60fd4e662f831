"""Preparation of raw DeepFashion2 folders: complete, resumed, and with broken files."""

import concurrent.futures
import io
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from capret_jax.config import DataConfig, PrepareConfig
from capret_jax.data import preparation, record_shards
from capret_jax.data.deepfashion2 import read_record
from capret_jax.data.preparation import prepare_deepfashion2
from capret_jax.data.records import Records
from capret_jax.datasets import open_dataset
from capret_jax.errors import InputError
from tests.data.raw_deepfashion2 import write_raw


@pytest.fixture(scope="module")
def raw(splits, tmp_path_factory):
    path = tmp_path_factory.mktemp("raw")
    write_raw(path, splits)
    return path


@pytest.fixture(scope="module")
def config(raw, tmp_path_factory):
    return DataConfig(
        name="deepfashion2",
        source_dir=str(raw),
        prepared_dir=str(tmp_path_factory.mktemp("prepared_raw")),
        prepare=PrepareConfig(processes=1),
    )


@pytest.fixture(scope="module")
def prepared(config):
    return open_dataset(config)


def report_of(prepared_dir):
    return json.loads((prepared_dir / "deepfashion2" / "1.0.0" / "report.json").read_text())


def test_items_equal_those_of_the_raw_folder(prepared, splits):
    for split, original in zip(prepared[:2], (splits["train"], splits["validation"]), strict=True):
        np.testing.assert_array_equal(split.items.box, original.items.box)
        np.testing.assert_array_equal(split.items.is_shop, original.items.is_shop)
        for name in ("pair_id", "style", "category_id", "scale", "viewpoint"):
            np.testing.assert_array_equal(split.items[name], original.items[name])


def test_image_bytes_are_untouched_and_outlines_kept(prepared, raw):
    records = prepared[0].records
    for index in (0, 1, 6):
        jpeg = (raw / "train" / "image" / f"{index + 1:06}.jpg").read_bytes()
        assert records.image(index) == jpeg
        outline = json.loads(records.annotation(index)["items"]["outline"][0])
        assert len(outline["landmarks"]) == 3 and len(outline["segmentation"][0]) == 6


def test_grey_and_cmyk_images_become_rgb(prepared):
    for row in (1, 6):
        view = prepared[0].crop_view(row, 32, 0.1)
        assert view.image.shape == (32, 32, 3)
        assert view.image.std() > 5


def test_the_report_counts_images_items_and_identities(config, prepared, splits):
    report = report_of(pathlib.Path(config.prepared_dir))["splits"]
    for name in ("train", "validation"):
        items = splits[name].items
        assert report[name]["images"] == report[name]["files"] == len(splits[name].records)
        assert report[name]["items"] == len(items)
        assert report[name]["identities"] == items.identities().max() + 1
        assert report[name]["pairs"] == items.training_identities().max() + 1
        assert report[name]["skipped"] == {}


def test_the_raw_folder_is_not_needed_afterwards(config, prepared, tmp_path):
    train, *_ = open_dataset(DataConfig(name="deepfashion2", prepared_dir=config.prepared_dir))
    assert len(train.items) == len(prepared[0].items)
    with pytest.raises(InputError, match="was prepared from"):
        prepare_deepfashion2(tmp_path, config.prepared_dir)


def test_an_interrupted_run_is_continued(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(record_shards, "_FILES_PER_SHARD", 10)
    written = []

    class InProcess:
        """Writes shards in this process, and is interrupted after `limit` of them."""

        def __init__(self, *_):
            pass

        def shutdown(self, cancel_futures):
            assert cancel_futures

        def submit(self, _, shard):
            if len(written) == limit:
                raise KeyboardInterrupt
            written.append(shard.path.name)
            future = concurrent.futures.Future()
            future.set_result(record_shards.write_shard(shard))
            return future

    monkeypatch.setattr(preparation.concurrent.futures, "ProcessPoolExecutor", InProcess)
    limit = 2
    with pytest.raises(KeyboardInterrupt):
        prepare_deepfashion2(raw, tmp_path)
    assert not (tmp_path / "deepfashion2" / "1.0.0" / "report.json").exists()
    limit = 1000
    builder = prepare_deepfashion2(raw, tmp_path)
    assert len(written) == len(set(written)) > 5
    files = len(list((raw / "train" / "image").iterdir()))
    assert builder.info.splits["train"].num_examples == files
    ids = [int(record["image_id"]) for record in builder.as_data_source("train")]
    assert ids == sorted(ids) == list(range(1, files + 1))


def test_beam_writes_the_same_records(prepared, raw, tmp_path):
    pytest.importorskip("apache_beam")
    runner = PrepareConfig(runner="DirectRunner", beam_options=("direct_num_workers=1",))
    builder = prepare_deepfashion2(raw, tmp_path, runner)
    for name, split in zip(("train", "validation"), prepared[:2], strict=True):
        records = Records(builder, name)
        assert len(records) == len(split.records)
        for i in range(len(records)):
            assert records.image(i) == split.records.image(i)
            assert str(records.annotation(i)) == str(split.records.annotation(i))


def test_a_runner_that_does_not_exist_is_refused(raw, tmp_path):
    pytest.importorskip("apache_beam")
    with pytest.raises(InputError, match="data.prepare.runner='Abacus'"):
        prepare_deepfashion2(raw, tmp_path, PrepareConfig(runner="Abacus"))
    with pytest.raises(InputError, match="beam_options need"):
        PrepareConfig(beam_options=("a=b",))


BROKEN = {
    "image does not decode": lambda image, annos: image.write_bytes(image.read_bytes()[:-400]),
    "annotation does not parse": lambda image, annos: annos.write_text("{"),
    "annotation without image": lambda image, annos: image.unlink(),
    "image without annotation": lambda image, annos: annos.unlink(),
    "source is neither shop nor user": lambda image, annos: change(annos, source="street"),
    "no pair_id": lambda image, annos: change(annos, pair_id=None),
    "unknown category": lambda image, annos: change_item(annos, category_id=14),
    "no style": lambda image, annos: change_item(annos, style=None),
    "condition outside 1 to 3": lambda image, annos: change_item(annos, scale=4),
    "no bounding box": lambda image, annos: change_item(annos, bounding_box=[1, 2, 3]),
    "JPEG with too many scans": lambda image, annos: image.write_bytes(
        image.read_bytes() + 101 * b"\xff\xda"
    ),
    "box in fractions of the image, not in pixels": lambda image, annos: change_item(
        annos, bounding_box=[0.1, 0.2, 0.8, 0.9]
    ),
    "box without area inside the image": lambda image, annos: change_item(
        annos, bounding_box=[-50, 5, -10, 40]
    ),
    "image with no usable item": lambda image, annos: annos.write_text(
        json.dumps({"source": "shop", "pair_id": 1})
    ),
}


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_item(path, **values):
    annotation = json.loads(path.read_text())
    change(path, item1=annotation["item1"] | values)


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_files_are_reported_with_their_reason(reason, raw, tmp_path):
    for folder in ("image", "annos"):
        suffix = {"image": "jpg", "annos": "json"}[folder]
        (tmp_path / "train" / folder).mkdir(parents=True)
        shutil.copy(raw / "train" / folder / f"000001.{suffix}", tmp_path / "train" / folder)
    image, annos = (tmp_path / "train" / p for p in ("image/000001.jpg", "annos/000001.json"))
    record, problems = read_record(tmp_path, "train", "000001")
    assert record is not None and not problems
    BROKEN[reason](image, annos)
    record, problems = read_record(tmp_path, "train", "000001")
    assert record is None
    assert reason in {problem.reason for problem in problems}


def test_boxes_are_cut_at_the_upright_images_edge(tmp_path, raw):
    for folder in ("image", "annos"):
        (tmp_path / "train" / folder).mkdir(parents=True)
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees: upright it is 20 wide and 40 high
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    (tmp_path / "train" / "image" / "000001.jpg").write_bytes(buffer.getvalue())
    annos = tmp_path / "train" / "annos" / "000001.json"
    shutil.copy(raw / "train" / "annos" / "000001.json", annos)
    change_item(annos, bounding_box=[-5, 10, 100, 100])
    record, _ = read_record(tmp_path, "train", "000001")
    assert record["items"][0]["bounding_box"] == [0, 10, 20, 40]


def test_more_than_a_hundredth_broken_is_refused_unless_allowed(raw, tmp_path):
    source = tmp_path / "raw"
    shutil.copytree(raw, source)
    shutil.rmtree(source / "validation")
    (source / "train" / "annos" / "000002.json").unlink()
    message = r"1 of \d+ images of .*train cannot be used \(1 x image without annotation\)"
    with pytest.raises(InputError, match=message):
        prepare_deepfashion2(source, tmp_path / "mended", PrepareConfig(1))
    prepare_deepfashion2(source, tmp_path / "allowed", PrepareConfig(1, allow_broken=True))
    shutil.copy(raw / "train" / "annos" / "000002.json", source / "train" / "annos")
    prepare_deepfashion2(source, tmp_path / "mended", PrepareConfig(1))
    report = report_of(tmp_path / "allowed")["splits"]
    assert report["train"]["skipped_records"] == [
        {"file": "000002", "item": "", "reason": "image without annotation"}
    ]
    assert report["validation"]["files"] == 0
    config = DataConfig(name="deepfashion2", prepared_dir=str(tmp_path / "allowed"))
    with pytest.raises(InputError, match="has no validation images"):
        open_dataset(config)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a DeepFashion2 folder: expected train/image"):
        prepare_deepfashion2(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="set --config.data.source_dir"):
        prepare_deepfashion2("", tmp_path / "out")
