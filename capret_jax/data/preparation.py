"""Preparation of raw DeepFashion2 as ArrayRecord files for TFDS: parallel and resumable."""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import shutil

import tensorflow_datasets as tfds
from tqdm import tqdm

from capret_jax.config import PrepareConfig
from capret_jax.data import schema
from capret_jax.data.deepfashion2 import SPLITS, list_files
from capret_jax.data.items import load_items
from capret_jax.data.preparation_report import check_broken, make_report
from capret_jax.data.record_shards import (
    NAME,
    Shard,
    ShardSummary,
    file_template,
    list_shards,
    read_summary,
    replace_json,
    write_shard,
)
from capret_jax.data.records import Records, damaged_metadata
from capret_jax.errors import InputError

VERSION = "1.0.0"
REPORT = "report.json"
# The official ground truth of retrieval, copied beside the records when the raw folder has it.
QUERY_FILE, GALLERY_FILE = "val_query.json", "val_gallery.json"
_OFFICIAL_FOLDER = "json_for_validation"


def prepare_deepfashion2(
    source_dir: str | os.PathLike,
    prepared_dir: str | os.PathLike,
    config: PrepareConfig = PrepareConfig(),
) -> tfds.core.DatasetBuilder:
    """Opens the prepared dataset under `prepared_dir`; prepares it first if it is not there.

    Args:
        source_dir: a raw folder, `train/{image,annos}` and `validation/{image,annos}`; may be
            empty once the dataset is prepared.
        prepared_dir: folder of prepared datasets, where `deepfashion2/1.0.0/` gets the records and
            `report.json`.
        config: settings of the preparation.

    Raises:
        InputError: the source is not a DeepFashion2 folder, too much of it is broken, or a folder
            cannot be read or written.
    """
    folder = pathlib.Path(prepared_dir) / NAME / VERSION
    source = pathlib.Path(source_dir).absolute() if source_dir else None
    try:
        if not (folder / REPORT).is_file():
            if source is None:
                raise InputError(
                    f"{prepared_dir} holds no prepared DeepFashion2: set --config.data.source_dir "
                    "to the raw folder."
                )
            _prepare(source, folder, config)
        with damaged_metadata(folder / REPORT):
            prepared_from = str(json.loads((folder / REPORT).read_bytes())["source"])
        if source is not None and str(source) != prepared_from:
            raise InputError(
                f"{folder} was prepared from {prepared_from}, not from {source}: set "
                "--config.data.prepared_dir to another folder, or leave source_dir empty."
            )
        if source is not None:
            _copy_official(source, folder)
    except OSError as error:
        raise InputError(
            f"data.prepared_dir={str(prepared_dir)!r} cannot hold the dataset ({error.strerror}): "
            "set --config.data.prepared_dir to a folder with room."
        ) from error
    return _open(folder)


def _open(folder: pathlib.Path) -> tfds.core.DatasetBuilder:
    with damaged_metadata(folder):
        return tfds.builder_from_directory(folder)


def _prepare(source: pathlib.Path, folder: pathlib.Path, config: PrepareConfig) -> None:
    files = {split: list_files(source, split) for split in SPLITS}
    if not any(files.values()):
        raise InputError(
            f"{source} is not a DeepFashion2 folder: expected train/image/*.jpg with "
            "train/annos/*.json, and the same under validation/."
        )
    folder.mkdir(parents=True, exist_ok=True)
    shards = [
        shard for split in SPLITS for shard in list_shards(source, folder, split, files[split])
    ]
    written = _write_all(shards, config)
    report = make_report(written)
    if not config.allow_broken:
        check_broken(source, report)
    _write_splits(folder, written)
    builder = _open(folder)
    for split in builder.info.splits:
        load_items(Records(builder, split))  # kept for the first run, which would wait for it
    # The report marks the dataset as complete.
    replace_json(folder / REPORT, {"source": str(source), "splits": report})
    for shard in shards:
        shard.summary_path.unlink()


def _copy_official(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies the official ground truth of retrieval where it is new or has changed."""
    for name in (QUERY_FILE, GALLERY_FILE):
        original, copy = source / _OFFICIAL_FOLDER / name, folder / name
        if original.is_file() and not (
            copy.is_file() and copy.stat().st_mtime == original.stat().st_mtime
        ):
            partial = folder / f"{name}.partial"
            shutil.copy2(original, partial)
            os.replace(partial, copy)


def _write_all(shards: list[Shard], config: PrepareConfig) -> dict[Shard, ShardSummary]:
    """Writes the shards that no earlier run has written; returns the summaries of all."""
    complete = {shard: summary for shard in shards if (summary := read_summary(shard))}
    missing = [shard for shard in shards if shard not in complete]
    if config.runner:
        _write_on_beam(missing, config)
    else:
        _write_locally(missing, sum(len(shard.files) for shard in complete), config)
    for shard in missing:
        summary = read_summary(shard)
        if summary is None:
            raise InputError(
                f"{shard.path} was not written, or its source changed meanwhile: run this again, "
                "with folders that all workers share."
            )
        complete[shard] = summary
    return {shard: complete[shard] for shard in shards}


def _write_locally(missing: list[Shard], done: int, config: PrepareConfig) -> None:
    """Writes shards in local processes; `done` files were written by an earlier run."""
    total = done + sum(len(shard.files) for shard in missing)
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(config.processes or os.cpu_count() or 1, context)
    try:
        with tqdm(total=total, initial=done, desc=f"preparing {NAME}", unit="image") as progress:
            futures = {pool.submit(write_shard, shard) for shard in missing}
            for future in concurrent.futures.as_completed(futures):
                progress.update(future.result())
    finally:
        pool.shutdown(cancel_futures=True)  # workers of an interrupted run stop, too


def _write_on_beam(missing: list[Shard], config: PrepareConfig) -> None:
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
        _ = pipeline | beam.Create(missing) | beam.Reshuffle() | beam.Map(write_shard)


def _write_splits(folder: pathlib.Path, written: dict[Shard, ShardSummary]) -> None:
    splits = []
    for split in SPLITS:
        shards = [shard for shard in written if shard.split == split]
        if shards:
            splits.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[written[shard].records for shard in shards],
                    num_bytes=sum(shard.path.stat().st_size for shard in shards),
                    filename_template=file_template(folder, split),
                )
            )
    write_metadata(folder, splits)


def write_metadata(folder: pathlib.Path, splits: list[tfds.core.SplitInfo]) -> None:
    """Writes the files by which TFDS finds splits, shards and features.

    Args:
        folder: folder of the prepared dataset, with the shards of all splits.
        splits: lengths and file names of the shards.
    """
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=schema.features(outlines=True),
        split_infos=splits,
        version=VERSION,
        filename_template=file_template(folder, None),
        check_data=False,  # the shards were written here
        description="DeepFashion2, consumer-to-shop retrieval.",
        citation="Ge et al., DeepFashion2, CVPR 2019, arXiv:1901.07973.",
    )
