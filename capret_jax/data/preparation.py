"""Raw DeepFashion2 -> ArrayRecord files that TFDS reads: in parallel, and resumable.

Each shard holds a fixed run of the files, whatever the number of processes. A worker writes a shard
under another name, renames it, and then writes what it counted beside it: a shard whose count is
there is complete, and is not made again by the next run.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
from typing import Any

import tensorflow_datasets as tfds
from tqdm import tqdm

from capret_jax.config import PrepareConfig
from capret_jax.data import schema
from capret_jax.data.deepfashion2 import SPLITS, list_files, read_record
from capret_jax.errors import InputError

NAME = "deepfashion2"
VERSION = "1.0.0"
REPORT = "report.json"
# The official ground truth of retrieval, kept beside the records when the raw folder has it.
QUERY_FILE, GALLERY_FILE = "val_query.json", "val_gallery.json"
_OFFICIAL_FOLDER = "json_for_validation"
_FILES_PER_SHARD = 2000
# More than this share of images or items left out looks like the wrong folder, or a bad copy.
_TOLERATED = 0.01


@dataclasses.dataclass(frozen=True)
class _Shard:
    source: pathlib.Path
    split: str
    files: tuple[str, ...]
    path: pathlib.Path

    @property
    def count_path(self) -> pathlib.Path:
        return self.path.with_name(f"{self.path.name}.count.json")

    @property
    def fingerprint(self) -> str:
        """Of what it is made from: a file that was mended makes another shard."""
        digest = hashlib.sha256(str(self.source).encode())
        for file in self.files:
            for name in (f"image/{file}.jpg", f"annos/{file}.json"):
                path = self.source / self.split / name
                stat = path.stat() if path.exists() else None
                digest.update(f"{name} {stat and (stat.st_size, stat.st_mtime_ns)}".encode())
        return digest.hexdigest()


def prepare_deepfashion2(
    source_dir: str | os.PathLike,
    prepared_dir: str | os.PathLike,
    config: PrepareConfig = PrepareConfig(),
) -> tfds.core.DatasetBuilder:
    """Opens the prepared dataset under `prepared_dir`; prepares it first if it is not there.

    Args:
        source_dir: a raw folder, `train/{image,annos}` and `validation/{image,annos}`; may be
            empty when it has been prepared.
        prepared_dir: gets `deepfashion2/1.0.0/` with the records and `report.json`.
        config: how.

    Raises:
        InputError: the source is no DeepFashion2 folder, too much of it is broken, or a folder
            cannot be read or written.
    """
    target = pathlib.Path(prepared_dir) / NAME / VERSION
    source = pathlib.Path(source_dir).absolute() if source_dir else None
    try:
        if not (target / REPORT).is_file():
            if source is None:
                raise InputError(
                    f"{prepared_dir} holds no prepared DeepFashion2: set --config.data.source_dir "
                    "to the raw folder."
                )
            _prepare(source, target, config)
        before = json.loads((target / REPORT).read_text())["source"]
        if source is not None and str(source) != before:
            raise InputError(
                f"{target} was prepared from {before}, not from {source}: set "
                "--config.data.prepared_dir to another folder, or leave source_dir empty."
            )
        if source is not None:
            _copy_official(source, target)
    except OSError as error:
        raise InputError(
            f"data.prepared_dir={str(prepared_dir)!r} cannot hold the dataset ({error.strerror}): "
            "set --config.data.prepared_dir to a folder with room."
        ) from error
    return tfds.builder_from_directory(target)


def _prepare(source: pathlib.Path, target: pathlib.Path, config: PrepareConfig) -> None:
    files = {split: list_files(source, split) for split in SPLITS}
    if not any(files.values()):
        raise InputError(
            f"{source} is not a DeepFashion2 folder: expected train/image/*.jpg with "
            "train/annos/*.json, and the same under validation/."
        )
    target.mkdir(parents=True, exist_ok=True)
    shards = [shard for split in SPLITS for shard in _shards(source, target, split, files[split])]
    counts = _write_all(shards, config)
    splits = _report(files, shards, counts)
    if not config.allow_broken:
        _check_broken(source, splits)
    _write_metadata(target, shards, counts)
    _replace(target / REPORT, {"source": str(source), "splits": splits})
    for shard in shards:
        shard.count_path.unlink()


def _copy_official(source: pathlib.Path, target: pathlib.Path) -> None:
    for name in (QUERY_FILE, GALLERY_FILE):
        original, copy = source / _OFFICIAL_FOLDER / name, target / name
        if original.is_file() and not (
            copy.is_file() and copy.stat().st_mtime == original.stat().st_mtime
        ):
            partial = target / f"{name}.partial"
            shutil.copy2(original, partial)
            os.replace(partial, copy)


def _shards(
    source: pathlib.Path, target: pathlib.Path, split: str, files: list[str]
) -> list[_Shard]:
    template = _template(target, split)
    starts = range(0, len(files), _FILES_PER_SHARD)
    return [
        _Shard(
            source,
            split,
            tuple(files[start : start + _FILES_PER_SHARD]),
            pathlib.Path(template.sharded_filepath(shard_index=i, num_shards=len(starts))),
        )
        for i, start in enumerate(starts)
    ]


def _template(target: pathlib.Path, split: str) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=target, dataset_name=NAME, split=split, filetype_suffix="array_record"
    )


def _write_all(shards: list[_Shard], config: PrepareConfig) -> list[dict[str, Any]]:
    """What each shard counted, made now or by an earlier run."""
    counts = {shard: count for shard in shards if (count := _read_count(shard))}
    todo = [shard for shard in shards if shard not in counts]
    if config.runner:
        _write_on_beam(todo, config)
    else:
        _write_here(todo, sum(len(shard.files) for shard in counts), config)
    for shard in todo:
        count = _read_count(shard)
        if count is None:
            raise InputError(
                f"{shard.path} was not written, or its source changed meanwhile: run this again, "
                "with folders that all workers share."
            )
        counts[shard] = count
    return [counts[shard] for shard in shards]


def _write_here(todo: list[_Shard], done: int, config: PrepareConfig) -> None:
    total = done + sum(len(shard.files) for shard in todo)
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(config.processes or os.cpu_count() or 1, context)
    try:
        with tqdm(total=total, initial=done, desc=f"preparing {NAME}", unit="image") as progress:
            futures = {pool.submit(_write_shard, shard) for shard in todo}
            for future in concurrent.futures.as_completed(futures):
                progress.update(future.result())
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupted run does not go on in its workers


def _write_on_beam(todo: list[_Shard], config: PrepareConfig) -> None:
    try:
        import apache_beam as beam
    except ImportError as error:
        raise InputError(
            f"data.prepare.runner={config.runner!r} needs Apache Beam: pip install "
            "'capret_jax[beam]'."
        ) from error
    options = beam.options.pipeline_options.PipelineOptions(
        [f"--{option}" for option in config.beam_options]
    )
    try:
        pipeline = beam.Pipeline(config.runner, options)
    except ValueError as error:
        raise InputError(f"data.prepare.runner={config.runner!r}: {error}") from error
    with pipeline:
        _ = pipeline | beam.Create(todo) | beam.Reshuffle() | beam.Map(_write_shard)


def _read_count(shard: _Shard) -> dict[str, Any] | None:
    """None when the shard is not complete, or was made from other files."""
    try:
        count = json.loads(shard.count_path.read_text())
    except (OSError, ValueError):
        return None
    return count if count["fingerprint"] == shard.fingerprint and shard.path.exists() else None


def _write_shard(shard: _Shard) -> int:
    """Writes the shard and its count; returns how many files it read."""
    features = schema.features(outlines=True)
    problems, identities, items, records = [], set(), 0, 0

    def serialized():
        nonlocal items, records
        for i, file in enumerate(shard.files):
            record, found = read_record(shard.source, shard.split, file)
            problems.extend(found)
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
    count = {
        "fingerprint": shard.fingerprint,
        "records": records,
        "items": items,
        "identities": sorted(identities),
        "problems": problems,
    }
    _replace(shard.count_path, count)
    return len(shard.files)


def _replace(path: pathlib.Path, content: dict) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def _report(
    files: dict[str, list[str]], shards: list[_Shard], counts: list[dict[str, Any]]
) -> dict[str, Any]:
    """What is in the dataset, and everything that is not."""
    report: dict[str, Any] = {}
    for split in SPLITS:
        mine = [count for shard, count in zip(shards, counts, strict=True) if shard.split == split]
        problems = [tuple(problem) for count in mine for problem in count["problems"]]
        sources = collections.defaultdict(set)
        for count in mine:
            for pair, style, source in count["identities"]:
                if style > 0:
                    sources[pair, style].add(source)
        report[split] = {
            "files": len(files[split]),
            "images": sum(count["records"] for count in mine),
            "items": sum(count["items"] for count in mine),
            "identities": len(sources),
            "pairs": sum(len(both) == 2 for both in sources.values()),
            "skipped": dict(collections.Counter(reason for _, _, reason in problems)),
            "skipped_records": [
                {"file": file, "item": item, "reason": reason} for file, item, reason in problems
            ],
        }
    return report


def _check_broken(source: pathlib.Path, report: dict[str, Any]) -> None:
    for split, part in report.items():
        images = sum(not skipped["item"] for skipped in part["skipped_records"])
        items = len(part["skipped_records"]) - images
        for kind, broken, usable in (
            ("images", images, part["images"]),
            ("items", items, part["items"]),
        ):
            if broken > _TOLERATED * (broken + usable):
                reasons = ", ".join(f"{n} x {reason}" for reason, n in part["skipped"].items())
                raise InputError(
                    f"{broken} of {broken + usable} {kind} of {source / split} cannot be used "
                    f"({reasons}); if that is as it should be, allow it with "
                    "--config.data.prepare.allow_broken=True (the tool's --allow_broken)."
                )


def _write_metadata(
    target: pathlib.Path, shards: list[_Shard], counts: list[dict[str, Any]]
) -> None:
    splits = []
    for split in SPLITS:
        mine = [(s, c) for s, c in zip(shards, counts, strict=True) if s.split == split]
        if mine:
            splits.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[count["records"] for _, count in mine],
                    num_bytes=sum(shard.path.stat().st_size for shard, _ in mine),
                    filename_template=_template(target, split),
                )
            )
    tfds.folder_dataset.write_metadata(
        data_dir=target,
        features=schema.features(outlines=True),
        split_infos=splits,
        version=VERSION,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=target, dataset_name=NAME, filetype_suffix="array_record"
        ),
        check_data=False,  # the shards were written here
        description="DeepFashion2, consumer-to-shop retrieval.",
        citation="Ge et al., DeepFashion2, CVPR 2019, arXiv:1901.07973.",
    )
