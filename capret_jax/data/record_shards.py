"""Shards of a raw DeepFashion2 split: ArrayRecord files that are written independently.

A shard is written under a temporary name and renamed, and then its summary is written beside it. So
a shard with a summary is complete, and the next run does not write it again.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from capret_jax.data import schema
from capret_jax.data.deepfashion2 import Problem, read_record
from capret_jax.errors import MALFORMED_JSON

NAME = "deepfashion2"
_FILES_PER_SHARD = 2000


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some consecutive files of a split, and the ArrayRecord file of their records.

    Attributes:
        source: the raw folder.
        split: "train" or "validation".
        files: numbers of the images, such as "000001".
        path: the ArrayRecord file.
    """

    source: pathlib.Path
    split: str
    files: tuple[str, ...]
    path: pathlib.Path

    @property
    def summary_path(self) -> pathlib.Path:
        """The file of the shard's summary."""
        return self.path.with_name(f"{self.path.name}.count.json")

    @property
    def fingerprint(self) -> str:
        """Digest of the names, sizes and modification times of the raw files."""
        digest = hashlib.sha256(str(self.source).encode())
        for file in self.files:
            for name in (f"image/{file}.jpg", f"annos/{file}.json"):
                path = self.source / self.split / name
                stat = path.stat() if path.exists() else None
                digest.update(f"{name} {stat and (stat.st_size, stat.st_mtime_ns)}".encode())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class ShardSummary:
    """The content of a written shard.

    Attributes:
        fingerprint: `Shard.fingerprint` at the time of writing.
        records: number of photographs.
        items: number of items.
        identities: distinct (pair_id, style, source) of the items.
        problems: the images and items that were left out.
    """

    fingerprint: str
    records: int
    items: int
    identities: list[tuple[int, int, str]]
    problems: list[Problem]


def file_template(folder: pathlib.Path, split: str | None) -> tfds.core.ShardedFileTemplate:
    """Names the shards of a split; of all splits where `split` is None."""
    return tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=NAME, split=split, filetype_suffix="array_record"
    )


def list_shards(
    source: pathlib.Path, folder: pathlib.Path, split: str, files: list[str]
) -> list[Shard]:
    """Divides the files of a split into shards, independently of the number of processes.

    Args:
        source: the raw folder.
        folder: folder of the prepared dataset.
        split: "train" or "validation".
        files: numbers of all images of the split.
    """
    template = file_template(folder, split)
    starts = range(0, len(files), _FILES_PER_SHARD)
    return [
        Shard(
            source,
            split,
            tuple(files[start : start + _FILES_PER_SHARD]),
            pathlib.Path(template.sharded_filepath(shard_index=i, num_shards=len(starts))),
        )
        for i, start in enumerate(starts)
    ]


def read_summary(shard: Shard) -> ShardSummary | None:
    """Reads a shard's summary; None where it is not complete or was made from other files."""
    try:
        values = json.loads(shard.summary_path.read_text())
        identities = [tuple(identity) for identity in values.pop("identities")]
        problems = [Problem(*problem) for problem in values.pop("problems")]
        summary = ShardSummary(**values, identities=identities, problems=problems)
    except (OSError, *MALFORMED_JSON):
        return None
    return summary if summary.fingerprint == shard.fingerprint and shard.path.exists() else None


def write_shard(shard: Shard) -> int:
    """Writes a shard and its summary; returns the number of files that it read."""
    features = schema.features(outlines=True)
    fingerprint = shard.fingerprint
    problems: list[Problem] = []
    identities: set[tuple[int, int, str]] = set()
    records = items = 0

    def serialized() -> Iterator[tuple[int, bytes]]:
        nonlocal items, records
        for i, file in enumerate(shard.files):
            record, new_problems = read_record(shard.source, shard.split, file)
            problems.extend(new_problems)
            if record is None:
                continue
            records += 1
            items += len(record["items"])
            identities.update(
                (record["pair_id"], item["style"], record["source"]) for item in record["items"]
            )
            yield i, features.serialize_example(features.encode_example(record))

    partial = shard.path.with_name(f"{shard.path.name}.partial")
    tfds.core.file_adapters.ArrayRecordFileAdapter.write_examples(partial, serialized())
    os.replace(partial, shard.path)
    summary = ShardSummary(fingerprint, records, items, sorted(identities), problems)
    replace_json(shard.summary_path, dataclasses.asdict(summary))
    return len(shard.files)


def replace_json(path: pathlib.Path, content: dict) -> None:
    """Writes a JSON file atomically."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)
