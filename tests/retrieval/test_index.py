"""Search, filters, additions, deletions, saving and loading of an index."""

import json

import numpy as np
import pytest

from capret_jax.errors import InputError
from capret_jax.retrieval import engines, index, index_engine
from capret_jax.retrieval.index import Index
from capret_jax.retrieval.index_engine import IndexConfig
from capret_jax.retrieval.storage import load_index, save_index
from tests.retrieval.vectors import clustered, unit_vectors

SIZE = 1500


@pytest.fixture(autouse=True)
def small_galleries_use_scann(monkeypatch):
    for module in (engines, index, index_engine):
        monkeypatch.setattr(module, "EXACT_BELOW", 200)


def items(count, first=0):
    return [
        {
            "id": f"item{i}",
            "category": ("trousers", "skirt", "vest")[i % 3],
            "shop": f"shop{i % 50}",
        }
        for i in range(first, first + count)
    ]


def build(kind="scann", **options):
    config = IndexConfig(kind=kind, k=10, target_recall=1.0, **options)
    return Index.build(clustered(SIZE, 0), items(SIZE), config, model="digest")


def exact_rows(vectors, rows, queries, k):
    """Searches some rows exactly, by sorting all inner products."""
    scores = queries @ vectors[rows].T
    return np.asarray(rows)[np.argsort(-scores, axis=1, kind="stable")[:, :k]]


@pytest.mark.parametrize("kind", ["auto", "exact", "scann", "mesh"])
def test_filtered_search_equals_exact_search(kind):
    shop, queries = build(kind), clustered(20, 2)
    for where, passes in (
        (None, lambda item: True),
        ({"category": "skirt"}, lambda item: item["category"] == "skirt"),
        ({"category": ["skirt", "vest"]}, lambda item: item["category"] != "trousers"),
        (
            {"category": "vest", "shop": "shop2"},
            lambda i: i["category"] == "vest" and i["shop"] == "shop2",
        ),
    ):
        rows = [row for row, item in enumerate(shop.items) if passes(item)]
        neighbours = shop.search(queries, 10, where)
        np.testing.assert_array_equal(neighbours.rows, exact_rows(shop.vectors, rows, queries, 10))
        expected = np.einsum("qe,qke->qk", queries, shop.vectors[neighbours.rows])
        np.testing.assert_allclose(neighbours.scores, expected, atol=1e-6)
    both = {"shop": "shop0", "category": "vest"}
    found = shop.search(queries, 10, both).rows
    assert found.shape == (20, min(10, sum(both.items() <= item.items() for item in shop.items)))


def test_search_finds_added_items_but_no_replaced_or_deleted_ones():
    shop, queries = build(), clustered(20, 2)
    new = clustered(30, 3)
    # Ten of them replace existing items.
    shop.add(new, items(30, first=SIZE - 10))
    assert len(shop) == SIZE + 20
    shop.delete([f"item{i}" for i in range(100)])
    assert len(shop) == SIZE - 80
    active = [*range(100, SIZE - 10), *range(SIZE, SIZE + 30)]
    neighbours = shop.search(queries, 10)
    np.testing.assert_array_equal(neighbours.rows, exact_rows(shop.vectors, active, queries, 10))
    assert shop.row("item1495") == SIZE + 5
    with pytest.raises(KeyError):
        shop.row("item3")
    with pytest.raises(InputError, match="1 items are not in the index, such as 'item3'"):
        shop.delete(["item3", "item200"])
    assert shop.row("item200") == 200


def test_engine_is_rebuilt_after_many_changes(monkeypatch):
    monkeypatch.setattr(index, "_REBUILD_ROWS", 100)
    shop, queries = build(), clustered(20, 2)
    shop.add(clustered(299, 3), items(299, first=SIZE))
    assert shop.engine_rows == SIZE
    shop.delete(["item0"])
    assert shop.engine_rows == len(shop.items) == len(shop) == SIZE + 298
    rows = np.arange(len(shop))
    neighbours = shop.search(queries, 10)
    np.testing.assert_array_equal(neighbours.rows, exact_rows(shop.vectors, rows, queries, 10))


def test_a_loaded_index_equals_the_saved_one(tmp_path):
    shop, queries = build(), clustered(20, 2)
    shop.add(clustered(5, 3), items(5, first=SIZE))
    shop.delete(["item7"])
    save_index(shop, tmp_path / "index")
    (tmp_path / "index" / "pictures").write_text("other file")
    save_index(shop, tmp_path / "index")  # replaces the first
    assert (tmp_path / "index" / "pictures").exists()
    loaded = load_index(tmp_path / "index", model="digest")
    assert loaded.items == shop.items and len(loaded) == len(shop)
    assert loaded.recall == shop.recall
    assert loaded.engine.description == shop.engine.description
    assert "ScaNN" in loaded.engine.description
    for ours, expected in zip(loaded.search(queries, 10), shop.search(queries, 10), strict=True):
        np.testing.assert_array_equal(ours, expected)
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert manifest["items"] == SIZE + 4 and manifest["embedding_dim"] == 16
    assert manifest["recall"]["queries"] == 256 and manifest["recall"]["value"] > 0.99
    assert manifest["config"]["seed"] == 0


@pytest.mark.parametrize(
    "name", ["vectors.npy", "items.jsonl", "alive.npy", "scann/hashed_dataset.npy"]
)
def test_a_damaged_index_is_rejected(tmp_path, name):
    save_index(build(), tmp_path / "index")
    path = tmp_path / "index" / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=f"{name} is missing or was changed"):
        load_index(tmp_path / "index")
    path.unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        load_index(tmp_path / "index")


def test_folders_of_something_else_are_rejected(tmp_path):
    with pytest.raises(InputError, match="is not an index"):
        load_index(tmp_path)
    save_index(build("exact"), tmp_path / "index")
    with pytest.raises(InputError, match="made with another model"):
        load_index(tmp_path / "index", model="other")
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "photo.jpg").write_text("x")
    with pytest.raises(InputError, match="holds something that is not an index"):
        save_index(build("exact"), tmp_path / "photographs")
    manifest = tmp_path / "index" / "manifest.json"
    manifest.write_text(manifest.read_text()[:20])
    with pytest.raises(InputError, match="is not an index"):
        load_index(tmp_path / "index")


@pytest.mark.parametrize(
    "vectors, entries, message",
    [
        (unit_vectors(3, 0), items(2), r"\(3, 16\) vectors do not fit 2 items"),
        (unit_vectors(2, 0), [{"id": "a"}, {"id": "a"}], "the id 'a' occurs 2 times"),
        (unit_vectors(1, 0), [{"name": "a"}], 'needs an "id"'),
        (np.full((1, 16), np.nan), items(1), "item 'item0' is not finite"),
        (unit_vectors(1, 0, width=8), items(1), "8 wide and those in the index 16"),
    ],
)
def test_invalid_additions_are_rejected_and_change_nothing(vectors, entries, message):
    shop = build("exact")
    with pytest.raises(InputError, match=message):
        shop.add(vectors, entries)
    assert len(shop) == len(shop.vectors) == SIZE


def test_invalid_searches_and_deletions_are_rejected():
    shop = build("exact")
    with pytest.raises(InputError, match="no item has a 'colour'"):
        shop.search(clustered(1, 0), 5, {"colour": "red"})
    with pytest.raises(InputError, match="another model"):
        shop.search(unit_vectors(1, 0, width=8), 5)
    with pytest.raises(InputError, match="cannot be left without items"):
        shop.delete([item["id"] for item in shop.items])
    assert shop.values("category") == ["skirt", "trousers", "vest"]
    with pytest.raises(InputError, match="k=0"):
        shop.search(clustered(1, 0), 0)


def test_filters_accept_numbers_lists_and_missing_properties():
    entries = [{"id": "a", "size": 42}, {"id": "b", "colours": ["red", "blue"]}, {"id": "c"}]
    shop = Index.build(unit_vectors(3, 0), entries)

    def ids(where):
        return [shop.items[row]["id"] for row in shop.search(unit_vectors(1, 1), 3, where).rows[0]]

    assert ids({"size": 42}) == ids({"size": ["42"]}) == ["a"]
    assert ids({"colours": "blue"}) == ["b"]
    for where in ({"colours": ""}, {"size": "None"}, {"size": 41}, {"size": [42, 41]}):
        with pytest.raises(InputError, match="no item has .*; there are (42|blue, red)"):
            ids(where)


@pytest.mark.parametrize(
    "values, found",
    [
        ({"in_stock": True}, "b"),
        ({"in_stock": np.bool_(False)}, "a"),
        ({"in_stock": "TRUE"}, "b"),
        ({"price": 19.9}, "b"),
        ({"price": 9.9}, "a"),
        ({"price": "19.90"}, "b"),
        ({"price": np.float32(37.5)}, "c"),
        ({"size": 37.0}, "b"),
        ({"size": np.int64(36)}, "a"),
        ({"size": {37, 36}}, "ab"),
        ({"size": frozenset({"37"})}, "b"),
        ({"size": np.array([36, 37])}, "ab"),
        ({"size": range(36, 38)}, "ab"),
        ({"code": "7"}, "b"),
        ({"code": "007"}, "a"),
        ({"code": 7}, "b"),
    ],
)
def test_filters_find_values_by_their_meaning(values, found):
    """As a CSV file gives them, all values are text; text that is equal comes first."""
    entries = [
        {"id": "a", "in_stock": "false", "price": "09.90", "size": "36", "code": "007"},
        {"id": "b", "in_stock": "true", "price": "19.90", "size": "37", "code": "7"},
        {"id": "c", "price": "37.5"},
    ]
    shop = Index.build(unit_vectors(3, 0), entries)
    rows = shop.search(unit_vectors(1, 1), 3, values).rows[0]
    assert "".join(sorted(shop.items[row]["id"] for row in rows)) == found


@pytest.mark.parametrize("value", [None, float("nan"), {"a": 1}, b"37", [[37]], object()])
def test_other_values_are_refused(value):
    shop = Index.build(unit_vectors(1, 0), [{"id": "a", "size": "37"}])
    with pytest.raises(InputError, match="size=.* is no value to filter by"):
        shop.search(unit_vectors(1, 1), 1, {"size": value})


def test_a_sharded_index_is_loaded_as_sharded(tmp_path):
    shop = build("mesh")
    assert "over 8 devices" in shop.engine.description
    save_index(shop, tmp_path / "index")
    assert load_index(tmp_path / "index").engine.description == shop.engine.description


def test_an_interrupted_save_is_recovered(tmp_path):
    save_index(build("exact"), tmp_path / "index")
    (tmp_path / "index").rename(tmp_path / "index.before")
    save_index(build("exact"), tmp_path / "index")
    assert len(load_index(tmp_path / "index")) == SIZE
    assert not (tmp_path / "index.before").exists()


def test_a_flipped_bit_of_the_manifest_is_never_another_index(tmp_path):
    vectors = unit_vectors(6, 0)
    save_index(Index.build(vectors, items(6), IndexConfig("exact"), "digest"), tmp_path / "index")
    path = tmp_path / "index" / "manifest.json"
    original = path.read_bytes()
    expected = load_index(tmp_path / "index")
    survived = 0
    for place in range(len(original)):
        data = bytearray(original)
        data[place] ^= 1 << (place % 7)
        path.write_bytes(data)
        try:
            found = load_index(tmp_path / "index", "digest")
        except InputError:
            continue
        survived += 1
        assert (found.items, found.model) == (expected.items, expected.model)
        assert (found.recall, found.engine_rows) == (expected.recall, expected.engine_rows)
        assert found.config == expected.config
    assert survived < len(original) / 4  # white space, and the name of the checksum
