"""What is kept of a collection, and what a kill may leave of it."""

import json

import pytest

from capret_jax.captioning.store import Key, Store
from capret_jax.data.captions import read_captions
from capret_jax.errors import InputError

KEY = Key("train", 3, 1)
SETTINGS = {"questioner": "script"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "captions" / "out.jsonl"


@pytest.fixture
def reopen(path):
    stores = []

    def make(settings=SETTINGS) -> Store:
        while stores:
            stores.pop().close()
        stores.append(Store(path, settings))
        return stores[-1]

    yield make
    while stores:
        stores.pop().close()


def test_what_was_kept_is_there_again(reopen):
    store = reopen()
    store.log(KEY, {"event": "question", "text": "What colour?"})
    store.log(Key("train", 4, 1), {"event": "question", "text": "What print?"})
    store.finish(Key("validation", 9, 2), "a red vest", turns=[])
    again = reopen()
    assert [event["text"] for event in again.events(KEY)] == ["What colour?"]
    assert again.finished == {Key("validation", 9, 2)}
    assert [line["caption"] for _, line in again.lines()] == ["a red vest"]
    assert again.events(Key("train", 5, 1)) == []


def test_what_was_paid_for_is_on_disk_at_once(reopen, path):
    store, journal = reopen(), path.with_name("out.jsonl.journal")
    store.log(KEY, {"event": "answer", "text": "navy"})
    store.log(KEY, {"event": "question", "text": "What print?", "usage": {"calls": 1}})
    assert len(journal.read_text().splitlines()) == 3
    store.log(KEY, {"event": "answer", "text": "star"})
    store.finish(KEY, "a navy vest")
    assert len(journal.read_text().splitlines()) == 4 and len(path.read_text().splitlines()) == 1


def test_the_file_is_what_training_reads(reopen, path):
    store = reopen()
    store.finish(KEY, "a red vest", turns=[{"answer": "red"}])
    store.finish(Key("validation", 9, 2), "a blue vest")
    assert read_captions(str(path)) == {(3, 1): ("a red vest",)}
    assert read_captions(str(path), "validation") == {(9, 2): ("a blue vest",)}


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.journal"])
def test_half_a_line_is_cut_off(reopen, path, name):
    store = reopen()
    store.log(KEY, {"event": "question", "text": "What colour?"})
    store.finish(KEY, "a red vest")
    file = path.with_name(name)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"split": "tr\xc3\xa4')
    store = reopen()
    assert file.read_bytes() == whole
    store.log(Key("train", 8, 1), {"event": "question", "text": "What print?"})
    store.finish(Key("train", 8, 1), "a blue vest")
    assert len(reopen().finished) == 2


def test_a_collection_of_other_settings_is_refused(reopen):
    reopen()
    with pytest.raises(InputError, match="begun with questioner='script' and this is 'phi'"):
        reopen({"questioner": "phi"})


def test_what_is_finished_is_not_kept_in_memory(reopen):
    store = reopen()
    store.log(KEY, {"event": "question", "text": "What colour?"})
    store.finish(KEY, "a red vest")
    assert store.events(KEY) == reopen().events(KEY) == []


def test_a_collection_without_its_journal_is_refused(reopen, path):
    reopen().finish(KEY, "a red vest")
    path.with_name(path.name + ".journal").unlink()
    with pytest.raises(InputError, match="journal is gone"):
        reopen()


def test_two_programs_cannot_write_one_file(reopen, path):
    reopen()
    with pytest.raises(InputError, match="being written by another program"):
        Store(path, SETTINGS)


@pytest.mark.parametrize("line", ["nonsense", "[1]", json.dumps({"caption": "of nothing"})])
def test_another_file_is_refused(path, line):
    path.parent.mkdir()
    path.write_text(line + "\n")
    with pytest.raises(InputError, match="choose another --out"):
        Store(path, SETTINGS)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        Store(tmp_path / "file" / "out.jsonl", SETTINGS)
