"""Copies of files and folders in a bucket, against a server that speaks the protocol."""

import pytest

from capret_jax.buckets.access import cache_folder, open_folder, open_workdir, staged
from capret_jax.data.captions import read_captions
from capret_jax.errors import InputError

LINE = b'{"image_id": 1, "item": 2, "caption": "a red skirt"}\n'


def test_a_path_on_a_disk_stays_itself(tmp_path):
    assert staged(tmp_path / "absent") == str(tmp_path / "absent")
    assert open_folder(tmp_path) == tmp_path


def test_captions_are_read_from_a_bucket_once_and_again_when_they_change(bucket):
    bucket.put("test", "captions.jsonl", LINE, {})
    url = "gs://test/captions.jsonl"
    assert read_captions(url) == {(1, 2): ("a red skirt",)}
    first = [r for r in bucket.requests if "alt=media" in r]
    assert read_captions(url) == {(1, 2): ("a red skirt",)}
    assert [r for r in bucket.requests if "alt=media" in r] == first
    bucket.put("test", "captions.jsonl", LINE.replace(b"red", b"big"), {})  # of the same size
    assert read_captions(url) == {(1, 2): ("a big skirt",)}


def test_a_folder_is_copied_with_its_structure_and_only_what_is_asked_for(bucket):
    for name in ("data/a/1", "data/a/b/2", "data/c", "data2/a/3"):
        bucket.put("test", name, name.encode(), {})
    bucket.put("test", "data/a/", b"", {})  # a marker, as consoles write
    copy = open_folder(staged("gs://test/data/", within="a"))
    found = {str(p.relative_to(copy)): p.read_text() for p in copy.rglob("*") if p.is_file()}
    assert found == {"a/1": "data/a/1", "a/b/2": "data/a/b/2"}
    assert copy.name == "data"


def test_an_interrupted_copy_is_not_taken_for_a_whole_one(bucket, monkeypatch):
    bucket.put("test", "data/1", b"one", {})
    bucket.put("test", "data/2", b"two", {})
    get = bucket.get

    def failing(owner, name, query):
        if name == "data/2" and query.get("alt") == "media":
            bucket.delete(owner, name, {})
        return get(owner, name, query)

    monkeypatch.setattr(bucket, "get", failing)
    with pytest.raises(InputError, match="gs://test/data cannot be reached"):
        staged("gs://test/data")
    assert not list(cache_folder().iterdir())


@pytest.mark.parametrize("call", [staged, open_folder, open_workdir])
def test_a_bucket_without_access_is_named_in_one_line(bucket, call):
    with pytest.raises(
        InputError, match=r"^gs://forbidden/run\S* cannot be reached \(.*Forbidden"
    ) as e:
        call("gs://forbidden/run")
    assert "\n" not in str(e.value)


def test_what_is_not_there_is_named(bucket):
    with pytest.raises(InputError, match="gs://test/data/a does not exist, or is empty"):
        staged("gs://test/data", "a")
    with pytest.raises(InputError, match="gs://absent/data"):
        open_workdir("gs://absent/data")


@pytest.mark.parametrize(
    ("url", "message"),
    [("s3://b/run", "not to s3://"), ("az://b/run", "not to az://")],
)
def test_a_workdir_where_orbax_cannot_write_is_refused(url, message):
    with pytest.raises(InputError, match=f"{url}: .*{message}"):
        open_workdir(url)


def test_unknown_buckets_are_refused_by_name():
    with pytest.raises(InputError, match="az://b/x: az:// is not known"):
        staged("az://b/x")


def test_a_missing_library_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"gs://b/x needs gcsfs: pip install .*\[buckets\]"):
        staged("gs://b/x")
