"""Catalogues, and their embedding in shards by several processes and after interruptions."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys

import faiss
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from capret_jax.data.transforms import frame
from capret_jax.distributed.part import Part
from capret_jax.errors import InputError
from capret_jax.retrieval.export import exported
from capret_jax.retrieval.storage import load_index, read_items, save_index
from capret_jax.retrieval.thumbnails import Thumbnails, write_thumbnails
from capret_jax.serve.catalogue import read_catalogue
from capret_jax.serve.encoder import Encoder
from capret_jax.serve.shards import CatalogueShards
from tests.commands.in_process import call
from tests.conftest import ROOT
from tests.serve.conftest import picture


@pytest.fixture(scope="module")
def encoder(trained_dir):
    return Encoder.from_dir(trained_dir)


def test_gallery_embeddings_equal_those_of_the_evaluation(encoder, index_dir, splits):
    index, split = load_index(index_dir, encoder.digest), splits["validation"]
    assert len(index) == split.items.is_shop.sum()
    margin = encoder.setup.margin
    for row in np.flatnonzero(split.items.is_shop)[:5]:
        known = split.items.attributes_of(int(row))
        expected = encoder.embed([split.crop_view(int(row), 32, margin)])[0]
        embedding = index.vectors[index.row(f"{known['image_id']}/{known['number']}")]
        np.testing.assert_allclose(embedding, expected, atol=1e-5)
    assert not index_dir.with_name("index.shards").exists()


@pytest.mark.slow
def test_two_processes_build_the_same_index(trained_dir, index_dir, tmp_path):
    command = [sys.executable, "tools/build_index.py", f"--model={trained_dir}"]
    flags = [f"--out={tmp_path / 'index'}", "--processes=2", "--shard_size=6"]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    index, expected = load_index(tmp_path / "index"), load_index(index_dir)
    assert index.items == expected.items
    np.testing.assert_allclose(index.vectors, expected.vectors, atol=1e-6)


def test_another_resizing_is_another_index(encoder, trained_dir, index_dir, splits, tmp_path):
    exact = Encoder.from_dir(trained_dir, resize="pillow")
    photograph = splits["validation"].photograph(0)
    by_pillow = photograph.resized_by("pillow")
    size, window = 32, frame(photograph)
    np.testing.assert_array_equal(exact.view(photograph, None).image, by_pillow.crop(window, size))
    np.testing.assert_array_equal(
        encoder.view(by_pillow, None).image, photograph.crop(window, size)
    )
    found, expected = exact.detect([photograph]), exact.detect([by_pillow])
    assert [d.score for d in found[0]] == [d.score for d in expected[0]]
    with pytest.raises(InputError, match="with data.read.resize=fast and not pillow: add --resize"):
        load_index(index_dir, exact.digest)
    index = load_index(index_dir, encoder.digest)
    index.model = exact.digest
    save_index(index, tmp_path / "index")
    with pytest.raises(InputError, match="with data.read.resize=pillow and not fast: add --resize"):
        load_index(tmp_path / "index", encoder.digest)
    assert len(load_index(tmp_path / "index", exact.digest)) == len(index)


def test_exports_equal_the_index(index_dir):
    index = load_index(index_dir)
    np.testing.assert_array_equal(np.load(index_dir / "export.npy"), index.vectors)
    assert read_items(index_dir / "export.jsonl") == index.items
    table = pyarrow.parquet.read_table(index_dir / "export.parquet")
    assert table["id"].to_pylist() == [item["id"] for item in index.items]
    np.testing.assert_array_equal(np.stack(table["embedding"].to_pylist()), index.vectors)
    read = faiss.read_index(str(index_dir / "export.faiss"))
    _, rows = read.search(index.vectors, 1)
    scores = np.einsum("ne,ne->n", index.vectors[rows[:, 0]], index.vectors)
    np.testing.assert_allclose(scores, 1, atol=1e-5)


@pytest.fixture
def shop(tmp_path):
    """A folder of pictures, one of them damaged."""
    for i, name in enumerate(["tops/a.png", "tops/b.jpg", "skirts/c.webp", "skirts/d.png"]):
        path = tmp_path / "shop" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name.split(".")[1]]
        path.write_bytes(picture(kind=kind, colour=(40 * i, 200 - 40 * i, 90)))
    (tmp_path / "shop" / "skirts" / "e.png").write_bytes(b"broken")
    (tmp_path / "shop" / "notes.txt").write_text("not a picture")
    return tmp_path / "shop"


def test_embedding_in_parts_equals_embedding_at_once(encoder, shop, tmp_path):
    products = read_catalogue(shop).products
    assert [p.item["id"] for p in products] == [
        "skirts/c.webp",
        "skirts/d.png",
        "skirts/e.png",
        "tops/a.png",
        "tops/b.jpg",
    ]
    single = CatalogueShards(products, encoder.digest, tmp_path / "once", 100)
    errors = single.embed(encoder, Part(), 2)
    assert len(errors) == 1 and "e.png" in errors[0]
    vectors, items = single.load()
    assert [item["category"] for item in items] == ["skirts", "skirts", "tops", "tops"]
    assert dict(single.thumbnails())["tops/a.png"][:2] == b"\xff\xd8"

    parts = CatalogueShards(products, encoder.digest, tmp_path / "parts", 2)
    for i in (1, 0):
        assert parts.count_missing() == (3 if i else 2)
        parts.embed(encoder, Part(i, 2), 1)
    part_vectors, part_items = parts.load()
    assert part_items == items
    np.testing.assert_allclose(part_vectors, vectors, atol=1e-5)


def test_existing_shards_are_not_embedded_again(encoder, shop, tmp_path, monkeypatch):
    products = read_catalogue(shop).products
    CatalogueShards(products, encoder.digest, tmp_path / "shards", 2).embed(encoder, Part(0, 2), 1)
    calls, embed = [], encoder.embed
    monkeypatch.setattr(encoder, "embed", lambda views: calls.append(len(views)) or embed(views))
    CatalogueShards(products, encoder.digest, tmp_path / "shards", 2).embed(encoder, Part(), 1)
    assert calls == [1]  # one picture of the middle shard is damaged
    # Shards of other items or of another model do not count.
    changed = [dataclasses.replace(p, item=p.item | {"category": "x"}) for p in products]
    assert CatalogueShards(changed, encoder.digest, tmp_path / "shards", 2).count_missing() == 3
    assert CatalogueShards(products, "other", tmp_path / "shards", 2).count_missing() == 3


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_csv_columns_are_boxes_and_properties(encoder, shop, tmp_path):
    rows = [
        {
            "id": "7",
            "image": "shop/tops/a.png",
            "shop": "north",
            "x1": 5,
            "y1": 5,
            "x2": 25,
            "y2": 20,
        },
        {"id": "8", "image": "shop/tops/b.jpg", "shop": "", "x1": "", "y1": "", "x2": "", "y2": ""},
        {"id": "9", "image": "shop/gone.jpg", "shop": "", "x1": "", "y1": "", "x2": "", "y2": ""},
    ]
    products = read_catalogue(write_csv(tmp_path / "shop.csv", rows)).products
    assert products[0].box.tolist() == [5, 5, 25, 20] and products[1].box is None
    assert products[0].item["shop"] == "north" and "shop" not in products[1].item
    shards = CatalogueShards(products, encoder.digest, tmp_path / "shards", 10)
    (error,) = shards.embed(encoder, Part(), 1)
    assert "gone.jpg cannot be read" in error
    assert [item["id"] for item in shards.load()[1]] == ["7", "8"]


def test_pictures_that_failed_or_changed_are_tried_again(encoder, tmp_path):
    for name, shade in (("a.png", 10), ("b.png", 200)):
        Image.new("L", (40, 30), shade).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"half a picture")

    def embed():
        shards = CatalogueShards(
            read_catalogue(tmp_path).products, encoder.digest, tmp_path / "shards", 2
        )
        embedded = len(shards.embed(encoder, Part(), 1))
        return embedded, shards.errors(), shards.load()

    failed, errors, (vectors, items) = embed()
    assert failed == 1 and "c.png" in errors[0] and len(items) == 2
    Image.new("L", (40, 30), 90).save(tmp_path / "a.png")
    Image.new("L", (40, 30), 60).save(tmp_path / "c.png")
    failed, errors, (again, items) = embed()
    assert failed == 0 and not errors
    assert [item["id"] for item in items] == ["a.png", "b.png", "c.png"]
    assert not np.allclose(again[0], vectors[0]) and np.allclose(again[1], vectors[1])


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"path": "a.png"}], "no column 'image'"),
        ([{"image": "", "id": "a"}], "line 2 names no image"),
        ([{"image": "a.png", "x1": 1, "y1": 2, "x2": 3, "y2": "?"}], "must be four numbers"),
    ],
)
def test_invalid_csv_files_are_rejected(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_catalogue(write_csv(tmp_path / "shop.csv", rows))


def test_other_sources_are_rejected(tmp_path):
    with pytest.raises(InputError, match="lists no pictures"):
        read_catalogue(tmp_path)
    with pytest.raises(InputError, match="neither a folder of pictures nor"):
        read_catalogue(tmp_path / "nothing.json")


def test_thumbnails_are_read_by_name(index_dir):
    thumbnails = Thumbnails(index_dir)
    item = json.loads((index_dir / "items.jsonl").read_text().splitlines()[0])
    assert thumbnails.read(thumbnails.file_name(item["id"]))[:2] == b"\xff\xd8"
    assert thumbnails.read("../../etc/passwd") is None
    assert thumbnails.file_name("unknown") is None
    assert Thumbnails(index_dir.parent).read("anything") is None


def test_writing_thumbnails_replaces_earlier_ones(tmp_path):
    write_thumbnails(tmp_path, [("a", b"old"), ("b", b"other")])
    write_thumbnails(tmp_path, [("a", b"new")])
    thumbnails = Thumbnails(tmp_path)
    assert thumbnails.read(thumbnails.file_name("a")) == b"new"
    assert thumbnails.file_name("b") is None


def test_exports_follow_a_rebuilt_index(trained_dir, index_dir, shop, tmp_path):
    out = tmp_path / "index"
    shutil.copytree(index_dir, out)
    program = "capret_jax.commands.build_index"
    code, output, errors = call(
        program, f"--model={trained_dir}", f"--source={shop}", f"--out={out}"
    )
    assert code == 0, errors
    assert "exported" in output
    index = load_index(out)
    assert len(index) != len(load_index(index_dir))
    np.testing.assert_array_equal(np.load(out / "export.npy"), index.vectors)
    assert faiss.read_index(str(out / "export.faiss")).ntotal == len(index)


def test_saving_an_index_removes_exports_of_the_earlier_one(index_dir, tmp_path):
    shutil.copytree(index_dir, tmp_path / "index")
    save_index(load_index(index_dir), tmp_path / "index")
    assert exported(tmp_path / "index") == []
    assert (tmp_path / "index" / "pictures.zip").is_file()
