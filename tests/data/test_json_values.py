"""JSON of other programs: every wrong value of every file ends in one line that names its entry."""

import json
import re

import numpy as np
import pytest

from capret_jax.data.captions import read_captions
from capret_jax.data.deepfashion2 import _BrokenError, _read_item
from capret_jax.data.json_values import as_int, as_number, as_numbers
from capret_jax.errors import InputError
from capret_jax.evaluation.detected_boxes import read_detections
from capret_jax.evaluation.official_scorer import (
    GALLERY_KEYS,
    QUERY_KEYS,
    RESULT_KEYS,
    read_entries,
    score,
)

NAN, INF = float("nan"), float("inf")
WRONG = [None, True, "", "one", NAN, INF, -INF, [], {}, [1], 10**400, "\ud800"]
QUERIES = [{"query_image_id": 1, "bbox": [1, 1, 9, 9], "cls": 1, "style": 1, "pair_id": 5}]
GALLERY = [{"gallery_image_id": 11, "bbox": [2, 2, 8, 8], "style": 1, "pair_id": 5}]
RESULTS = [
    {
        "query_image_id": 1,
        "query_bbox": [1, 1, 9, 9],
        "query_cls": 1,
        "query_score": 0.5,
        "gallery_image_id": [11],
        "gallery_bbox": [[2, 2, 8, 8]],
    }
]
DETECTION = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.5}
CAPTION = {"image_id": 1, "item": 1, "caption": "a red dress"}


@pytest.mark.parametrize("value, number", [(7, 7), (7.0, 7), ("000007", 7), (-1, -1)])
def test_whole_numbers(value, number):
    assert as_int(value) == number and isinstance(as_int(value), int)


@pytest.mark.parametrize("value", [*WRONG, 1.5, "1.5", "-"])
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match="is no whole number|is too large"):
        as_int(value)


def test_finite_numbers():
    assert [as_number(value) for value in (1, 0.5, "0.5", "1e3")] == [1.0, 0.5, 0.5, 1000.0]
    assert as_numbers([1, "2"], 2) == [1.0, 2.0]
    for value in WRONG:
        with pytest.raises(ValueError, match="is no number|is not finite"):
            as_number(value)
        with pytest.raises(ValueError, match="is no|is not finite"):
            as_numbers([1, 2, 3, value], 4)


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def variants(entry, wrong=WRONG):
    """Yields the entry with each value replaced by each wrong one, and without it."""
    for key, value in entry.items():
        yield from ({**entry, key: other} for other in wrong)
        yield {name: kept for name, kept in entry.items() if name != key}
        if isinstance(value, list):
            yield from ({**entry, key: [*value[:-1], other]} for other in wrong)
            yield {**entry, key: value[:-1]}


@pytest.mark.parametrize(
    "entries, keys",
    [(QUERIES, QUERY_KEYS), (GALLERY, GALLERY_KEYS), (RESULTS, RESULT_KEYS)],
    ids=["queries", "gallery", "results"],
)
def test_a_wrong_entry_of_the_scorers_files_is_named(tmp_path, entries, keys):
    for entry in variants(entries[0]):
        if entry.get("gallery_image_id") == [1]:
            continue  # another image
        path = write(tmp_path / "file.json", [*entries, entry])
        with pytest.raises(InputError, match=r"file\.json: entry 1") as error:
            read_entries(path, keys)
        assert "\n" not in str(error.value)
    for content in ({"results": entries}, "text", 3, None):
        with pytest.raises(InputError, match="not a list of objects"):
            read_entries(write(tmp_path / "file.json", content), keys)


def test_ids_as_text_score_as_numbers_do(tmp_path):
    as_text = [
        {
            **RESULTS[0],
            "query_image_id": "000001",
            "query_cls": "1",
            "query_score": "0.5",
            "gallery_image_id": ["000011"],
        }
    ]
    texts = [{**QUERIES[0], "pair_id": "5", "style": "1"}]
    for encoding in ("utf-8", "utf-8-sig"):
        for name, content in (("r", as_text), ("q", texts), ("g", GALLERY)):
            (tmp_path / name).write_text(json.dumps(content), encoding=encoding)
        metrics = score(
            read_entries(tmp_path / "r", RESULT_KEYS),
            read_entries(tmp_path / "q", QUERY_KEYS),
            read_entries(tmp_path / "g", GALLERY_KEYS),
        ).as_dict()
        assert metrics["top_1"] == 1.0 and metrics["missed"] == 0


def test_zero_based_classes_and_unequal_lists_are_named(tmp_path):
    for change, message in (
        ({"query_cls": 0}, "there is no class 0; they count from 1"),
        ({"gallery_bbox": []}, "has 1 gallery_image_id and 0 gallery_bbox"),
    ):
        path = write(tmp_path / "file.json", [{**RESULTS[0], **change}])
        with pytest.raises(InputError, match=message):
            read_entries(path, RESULT_KEYS)


def test_a_wrong_detection_is_named(tmp_path, splits):
    items = splits["validation"].items
    known = {**DETECTION, "image_id": int(items["image_id"][0])}
    for entry in variants(known, [*WRONG, 1.7]):
        path = write(tmp_path / "file.json", [known, entry])
        if entry.get("score") == 1.7:
            continue  # odd, and harmless: scores only order the boxes
        if entry.get("bbox") == [1, 1, 9, 1.7]:
            continue
        with pytest.raises(InputError, match="entry 1 is no detection") as error:
            read_detections(path, items)
        assert "\n" not in str(error.value)
    path = write(tmp_path / "file.json", [{**known, "bbox": [0.1, 0.1, 0.5, 0.5]}] * 3)
    with pytest.raises(InputError, match="look like fractions"):
        read_detections(path, items)
    with pytest.raises(InputError, match="there is no category 0; they count from 1"):
        read_detections(write(tmp_path / "file.json", [{**known, "category_id": 0}]), items)


def test_a_wrong_line_of_captions_is_named(tmp_path):
    good = json.dumps(CAPTION)
    # Any text is a caption.
    wrong = [entry for entry in variants(CAPTION) if not isinstance(entry.get("caption"), str)]
    wrong += [e for e in variants(CAPTION) if e.get("image_id") != 1 or e.get("item") != 1]
    wrong += [{**CAPTION, "item": True}, {**CAPTION, "split": "Train"}]
    for entry in [*wrong, [CAPTION], "text", 7]:
        (tmp_path / "file.jsonl").write_text(f"{good}\n\n{json.dumps(entry)}\n")
        with pytest.raises(InputError, match=r"file\.jsonl, line 3 is no caption \(") as error:
            read_captions(str(tmp_path / "file.jsonl"))
        assert "\n" not in str(error.value)
    (tmp_path / "file.jsonl").write_bytes('{"caption": "robe été"}'.encode("latin-1"))
    with pytest.raises(InputError, match="is not in UTF-8"):
        read_captions(str(tmp_path / "file.jsonl"))


@pytest.mark.parametrize("separator", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_captions_in_all_spellings(tmp_path, separator, encoding):
    lines = [
        '{"image_id": "000001", "item": "1", "caption": "a red\u2028dress"}',
        "",
        '{"image_id": 1.0, "item": 1, "caption": "红色"}',
        '{"image_id": 1, "item": 1, "caption": "other", "split": "validation"}',
        "",
    ]
    (tmp_path / "c.jsonl").write_bytes(separator.join(lines).encode(encoding))
    assert read_captions(str(tmp_path / "c.jsonl")) == {(1, 1): ("a red\u2028dress", "红色")}


def test_wrong_annotations_are_left_out_with_a_reason():
    levels = dict.fromkeys(("scale", "occlusion", "zoom_in", "viewpoint"), 1)
    item = {"category_id": 1, "style": 1, "bounding_box": [1, 1, 9, 9], **levels}
    assert _read_item(item, (20, 20))["bounding_box"] == [1, 1, 9, 9]
    for entry in variants(item, [*WRONG, 1.7, "1"]):
        if entry.get("bounding_box") == [1, 1, 9, 1.7]:
            reason = "box without area"
        else:
            reason = "category|style|condition|box"
        with pytest.raises(_BrokenError) as error:
            _read_item(entry, (20, 20))
        assert re.search(reason, str(error.value))
    with pytest.raises(_BrokenError, match="fractions"):
        _read_item({**item, "bounding_box": [0.1, 0.1, 0.9, 0.9]}, (20, 20))
    np.testing.assert_array_equal(_read_item(item, (5, 5))["bounding_box"], [1, 1, 5, 5])
