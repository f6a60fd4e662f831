"""The files of a collection: resumed, damaged by a kill, or of another collection."""

import json

import pytest

from capret_jax.captioning.store import CaptionStore, ItemKey
from capret_jax.data.captions import read_captions
from capret_jax.errors import InputError

KEY = ItemKey("train", 3, 1)
SETTINGS = {"questioner": "script"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "captions" / "out.jsonl"


@pytest.fixture
def reopen(path):
    stores = []

    def make(settings=SETTINGS) -> CaptionStore:
        while stores:
            stores.pop().close()
        stores.append(CaptionStore(path, settings))
        return stores[-1]

    yield make
    while stores:
        stores.pop().close()


def test_reopened_store_has_events_and_finished_items(reopen):
    store = reopen()
    store.log(KEY, {"event": "question", "text": "What colour?"})
    store.log(ItemKey("train", 4, 1), {"event": "question", "text": "What print?"})
    store.finish(ItemKey("validation", 9, 2), "a red vest", turns=[])
    again = reopen()
    assert [event["text"] for event in again.events(KEY)] == ["What colour?"]
    assert again.finished == {ItemKey("validation", 9, 2)}
    assert [line["caption"] for _, line in again.lines()] == ["a red vest"]
    assert again.events(ItemKey("train", 5, 1)) == []


def test_events_with_a_cost_are_flushed_at_once(reopen, path):
    store, journal = reopen(), path.with_name("out.jsonl.journal")
    store.log(KEY, {"event": "answer", "text": "navy"})
    store.log(KEY, {"event": "question", "text": "What print?", "usage": {"calls": 1}})
    assert len(journal.read_text().splitlines()) == 3
    store.log(KEY, {"event": "answer", "text": "star"})
    store.finish(KEY, "a navy vest")
    assert len(journal.read_text().splitlines()) == 4 and len(path.read_text().splitlines()) == 1


def test_finished_items_are_read_as_training_captions(reopen, path):
    store = reopen()
    store.finish(KEY, "a red vest", turns=[{"answer": "red"}])
    store.finish(ItemKey("validation", 9, 2), "a blue vest")
    assert read_captions(str(path)) == {(3, 1): ("a red vest",)}
    assert read_captions(str(path), "validation") == {(9, 2): ("a blue vest",)}


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.journal"])
def test_partial_last_line_is_removed(reopen, path, name):
    store = reopen()
    store.log(KEY, {"event": "question", "text": "What colour?"})
    store.finish(KEY, "a red vest")
    file = path.with_name(name)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"split": "tr\xc3\xa4')
    store = reopen()
    assert file.read_bytes() == whole
    store.log(ItemKey("train", 8, 1), {"event": "question", "text": "What print?"})
    store.finish(ItemKey("train", 8, 1), "a blue vest")
    assert len(reopen().finished) == 2


def test_other_settings_are_refused(reopen):
    reopen()
    with pytest.raises(InputError, match="begun with questioner='script' and this is 'phi'"):
        reopen({"questioner": "phi"})


def test_events_of_finished_items_are_dropped(reopen):
    store = reopen()
    store.log(KEY, {"event": "question", "text": "What colour?"})
    store.finish(KEY, "a red vest")
    assert store.events(KEY) == reopen().events(KEY) == []


def test_missing_journal_is_refused(reopen, path):
    reopen().finish(KEY, "a red vest")
    path.with_name(path.name + ".journal").unlink()
    with pytest.raises(InputError, match="journal is gone"):
        reopen()


def test_second_program_cannot_open_the_file(reopen, path):
    reopen()
    with pytest.raises(InputError, match="being written by another program"):
        CaptionStore(path, SETTINGS)


@pytest.mark.parametrize("line", ["nonsense", "[1]", json.dumps({"caption": "of nothing"})])
def test_file_without_caption_lines_is_refused(path, line):
    path.parent.mkdir()
    path.write_text(line + "\n")
    with pytest.raises(InputError, match="choose another --out"):
        CaptionStore(path, SETTINGS)


def test_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        CaptionStore(tmp_path / "file" / "out.jsonl", SETTINGS)
