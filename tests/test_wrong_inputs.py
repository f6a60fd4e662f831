"""All small files that are read, with generated mistakes: read, or refused by one error."""

import copy
import dataclasses
import json
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from capret_jax.checkpoints.converted import read_card
from capret_jax.config import SIZES
from capret_jax.data.captions import read_captions
from capret_jax.data.deepfashion2 import read_record
from capret_jax.detection.threshold import ThresholdCalibration, read_threshold, write_thresholds
from capret_jax.errors import InputError
from capret_jax.evaluation.detected_boxes import read_detections
from capret_jax.evaluation.official_scorer import QUERY_KEYS, read_entries
from capret_jax.retrieval.index import Index
from capret_jax.retrieval.index_engine import IndexConfig
from capret_jax.retrieval.storage import load_index, save_index
from capret_jax.serve.catalogue import read_catalogue

# The same examples in every run.
EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "1", "NaN", "\ud800", 10**400, -1, 0.5, 1e308])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def nodes(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yields the path of every value in a JSON document."""
    yield path
    children = dict(enumerate(value)) if isinstance(value, list) else value
    for key, child in children.items() if isinstance(children, dict) else ():
        yield from nodes(child, (*path, key))


def replaced(document: Any, path: tuple, value: Any) -> Any:
    """Returns a document with another value at a path; a missing one where that is Ellipsis."""
    if not path:
        return value
    changed = copy.deepcopy(document)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


# ---- the files: each writes a whole one into a folder, and has its path and its reader


def _card(folder: pathlib.Path) -> tuple[pathlib.Path, Callable]:
    content = {
        "model": dataclasses.asdict(SIZES["tiny"]),
        "kind": "vqa",
        "fresh": ["a"],
        "checksum": 5,
    }
    (folder / "model.json").write_text(json.dumps(content))
    return folder / "model.json", lambda: read_card(folder)


def _threshold(folder: pathlib.Path) -> tuple[pathlib.Path, Callable]:
    write_thresholds(folder, 3, {"phrases": ThresholdCalibration(0.5, 0.9, 0.8)}, {"phrases": {}})
    return folder / "detection.json", lambda: read_threshold(folder, 3, "phrases", {}, 0.1)


def _queries(folder: pathlib.Path) -> tuple[pathlib.Path, Callable]:
    entry = {"query_image_id": 1, "bbox": [1, 1, 9, 9], "cls": 1, "style": 1, "pair_id": 5}
    (folder / "query.json").write_text(json.dumps([entry, entry]))
    return folder / "query.json", lambda: read_entries(folder / "query.json", QUERY_KEYS)


def _detections(folder: pathlib.Path, items: Any) -> tuple[pathlib.Path, Callable]:
    images = [int(items["image_id"][np.flatnonzero(items.is_shop == side)[0]]) for side in (0, 1)]
    entries = [
        {"image_id": image, "category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.5}
        for image in images
    ]
    path = folder / "detections.json"
    path.write_text(json.dumps(entries))
    return path, lambda: read_detections(path, items)


def _manifest(folder: pathlib.Path) -> tuple[pathlib.Path, Callable]:
    vectors = np.eye(4, dtype=np.float32)
    items = [{"id": str(i)} for i in range(4)]
    save_index(Index.build(vectors, items, IndexConfig("exact"), "digest"), folder / "index")
    return folder / "index" / "manifest.json", lambda: load_index(folder / "index", "digest")


def _annotation(folder: pathlib.Path) -> tuple[pathlib.Path, Callable]:
    for name in ("image", "annos"):
        (folder / "train" / name).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "train" / "image" / "000001.jpg")
    item = {"category_id": 1, "style": 1, "bounding_box": [1, 2, 30, 20], "scale": 1}
    item |= {"occlusion": 1, "zoom_in": 1, "viewpoint": 2, "segmentation": [[1, 2, 3, 4, 5, 6]]}
    path = folder / "train" / "annos" / "000001.json"
    path.write_text(json.dumps({"source": "shop", "pair_id": 1, "item1": item}))
    return path, lambda: read_record(folder, "train", "000001")


FILES = [_card, _threshold, _queries, _detections, _manifest, _annotation]


@pytest.fixture(params=FILES, ids=lambda file: file.__name__.strip("_"))
def file(request, tmp_path, splits):
    """A whole JSON file's path, and its reader."""
    items = (splits["validation"].items,) if request.param is _detections else ()
    return request.param(tmp_path, *items)


def read_or_refused(read: Callable) -> None:
    """Passes where a reader succeeds, or raises the error that ends in one line."""
    try:
        read()
    except InputError as error:
        assert len(str(error)) < 2000


def test_whole_files_are_read(file):
    file[1]()


@EXAMPLES
@given(data=st.data())
def test_wrong_values(file, data):
    path, read = file
    original = path.read_bytes()
    document = json.loads(original)
    place = data.draw(st.sampled_from(list(nodes(document))), "place")
    value = data.draw(JSON | st.just(...) if place else JSON, "value")
    path.write_text(json.dumps(replaced(document, place, value)))
    try:
        read_or_refused(read)
    finally:
        path.write_bytes(original)


@EXAMPLES
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["flip", "cut", "insert"]))
def test_wrong_bytes(file, seed, kind):
    path, read = file
    original = path.read_bytes()
    source = random.Random(seed)
    place, data = source.randrange(len(original)), bytearray(original)
    if kind == "flip":
        data[place] ^= 1 << source.randrange(8)
    elif kind == "cut":
        del data[place:]
    else:
        data[place:place] = source.randbytes(3)
    path.write_bytes(data)
    try:
        read_or_refused(read)
    finally:
        path.write_bytes(original)


OTHERS = [b"[" * 10**5, b'{"a":' * 10**5, b"", b"\xff\xfe", b"null", b"1e999", b"9" * 5000]


@pytest.mark.parametrize("content", OTHERS)
def test_documents_of_another_kind(file, content):
    path, read = file
    path.write_bytes(content)
    read_or_refused(read)


CAPTION = '{"image_id": 1, "item": 1, "caption": "a red dress"}'


@EXAMPLES
@given(line=JSON.map(json.dumps) | st.text(max_size=30) | st.just("[" * 10**5))
def test_wrong_lines_of_captions(tmp_path, line):
    path = tmp_path / "captions.jsonl"
    path.write_text(f"{CAPTION}\n{line}\n", encoding="utf-8", errors="surrogatepass")
    read_or_refused(lambda: read_captions(str(path)))


CELLS = st.sampled_from(
    ["0.jpg", "a", "1", "-1", "1e9", "nan", " ", "", "9" * 400, '"', "../0.jpg"]
)
HEADERS = st.sampled_from(["image", "id", "x1", "y1", "x2", "y2", "Image ", "ID", "file", "", "é"])


@EXAMPLES
@given(
    header=st.lists(HEADERS, max_size=7),
    rows=st.lists(st.lists(CELLS | st.text(max_size=5), max_size=7), max_size=4),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
)
def test_wrong_catalogues(tmp_path, header, rows, delimiter, encoding):
    if not (tmp_path / "0.jpg").exists():
        Image.new("RGB", (40, 30)).save(tmp_path / "0.jpg")
    text = "\n".join(delimiter.join(row) for row in [header, *rows])
    (tmp_path / "shop.csv").write_bytes(text.encode(encoding, "replace"))
    read_or_refused(lambda: read_catalogue(tmp_path / "shop.csv"))
