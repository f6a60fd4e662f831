"""Audit of leakage: annotations in captions, and validation photographs in training data."""

import os
import pathlib
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from capret_jax.ablation.grid import Grid
from capret_jax.checkpoints.loading import ModelFolder
from capret_jax.config import DataConfig, build
from capret_jax.data.split import Split
from capret_jax.data.transforms import frame
from capret_jax.datasets import Dataset, open_dataset

# Bits in which the hashes of a photograph and of its scaled or recompressed copy may differ.
MAX_BITS = 4
_SIDE, _CELLS = 64, 8
_ROWS_PER_CHUNK = 64
_PAIRS_LISTED = 20


def audit(grid: Grid, dataset: Dataset, cache: pathlib.Path) -> dict[str, Any]:
    """Collects the ways in which information may have leaked.

    Args:
        grid: the cells, all of them done.
        dataset: the dataset of `config.experiment`.
        cache: folder for the hashes of photographs.

    Returns:
        "training_captions", captions arm -> information in its captions; "query_captions",
        embedding and caption source -> information in queries' captions; "shared_identities", their
        number; "near_duplicates", training set -> "pictures", the number of validation photographs
        with a near duplicate in it, and "pairs", image ids of the first ones; "unknown", folders of
        models whose training data is not recorded.
    """
    cache.mkdir(parents=True, exist_ok=True)
    training_sets, unknown = _training_sets(grid, dataset)
    return {
        "training_captions": {
            cell.captions: grid.describe_training_captions(cell) for cell in grid.cells
        },
        "query_captions": {
            f"{evaluation.cell.embedding}, {evaluation.caption_source}": (
                grid.describe_evaluation_captions(evaluation)
            )
            for evaluation in grid.evaluations()
        },
        "shared_identities": shared_identities(dataset),
        "near_duplicates": {
            name: _duplicates(dataset.validation, split, cache)
            for name, split in training_sets.items()
        },
        "unknown": unknown,
    }


def _training_sets(grid: Grid, dataset: Dataset) -> tuple[dict[str, Split], list[str]]:
    """Returns name -> training split, of the cells and their models; and other models' folders."""
    splits, unknown = {"the training split": dataset.train}, []
    for folder in dict.fromkeys((grid.initial_model, *grid.vqa_models.values())):
        data = ModelFolder(folder).setup().data
        if data is None:
            unknown.append(folder)
        else:
            split = open_dataset(build(DataConfig, data, "config.data")).train
            splits[f"the training data of {pathlib.Path(folder).name}"] = split
    return splits, unknown


def _duplicates(validation: Split, train: Split, cache: pathlib.Path) -> dict[str, Any]:
    """Returns an entry of "near_duplicates" in `audit`'s result."""
    checksum = zlib.crc32(train.items["image_id"].tobytes())
    pairs = near_duplicates(
        _cached_hashes(validation, cache / "validation.npy"),
        _cached_hashes(train, cache / f"{checksum:08x}-{len(train.items)}.npy"),
    )
    image_ids = np.stack([_image_ids(validation)[pairs[:, 0]], _image_ids(train)[pairs[:, 1]]], 1)
    return {
        "pictures": len(np.unique(pairs[:, 0])),
        "pairs": image_ids[:_PAIRS_LISTED].tolist(),
    }


def shared_identities(dataset: Dataset) -> int:
    """Counts the identities (pair_id, style > 0) that are in both splits."""
    pairs = []
    for split in (dataset.train, dataset.validation):
        known = split.items["style"] > 0
        columns = (split.items["pair_id"][known], split.items["style"][known])
        pairs.append(set(zip(*(column.tolist() for column in columns), strict=True)))
    return len(pairs[0] & pairs[1])


def _cached_hashes(split: Split, path: pathlib.Path) -> np.ndarray:
    """Reads the split's `difference_hashes` from a cache file, which is written atomically."""
    if not path.exists():
        partial = path.with_suffix(".partial.npy")
        np.save(partial, difference_hashes(split))
        partial.replace(path)
    return np.load(path)


def difference_hashes(split: Split) -> np.ndarray:
    """Returns the difference hash (dHash) of every photograph.

    Returns:
        (P, 2) uint64, 112 bits of which tell for 8 x 8 grey cells whether the next cell, to the
        right and below, is brighter; in the order of the records.
    """
    rows = _first_rows(split)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = threads.map(lambda row: _hash(split, int(row)), rows, chunksize=64)
        return np.stack([*tqdm(found, "hashing photographs", len(rows), leave=False)])


def _hash(split: Split, row: int) -> np.ndarray:
    photograph = split.photograph(row)
    grey = photograph.crop(frame(photograph), _SIDE).mean(axis=-1)
    cells = grey.reshape(_CELLS, _SIDE // _CELLS, _CELLS, -1).mean(axis=(1, 3))
    bits = np.concatenate(
        [(cells[:, 1:] > cells[:, :-1]).ravel(), (cells[1:] > cells[:-1]).ravel()]
    )
    return np.packbits(np.pad(bits, (0, 128 - len(bits)))).view(np.uint64)


def near_duplicates(queries: np.ndarray, others: np.ndarray, bits: int = MAX_BITS) -> np.ndarray:
    """Finds the pairs of hashes that differ in few bits.

    Args:
        queries: (n, 2) uint64 hashes.
        others: (m, 2) uint64 hashes.
        bits: the most that may differ.

    Returns:
        (pairs, 2) int64 indices into `queries` and `others`.
    """
    pairs = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(queries), _ROWS_PER_CHUNK):
        differing = queries[start : start + _ROWS_PER_CHUNK, None] ^ others[None]
        near = np.argwhere(np.bitwise_count(differing).sum(axis=-1) <= bits)
        pairs.append(near + np.array([start, 0]))
    return np.concatenate(pairs)


def _first_rows(split: Split) -> np.ndarray:
    """Returns the row of one item of each photograph, in the order of the records."""
    return np.unique(split.items.record, return_index=True)[1]


def _image_ids(split: Split) -> np.ndarray:
    return split.items["image_id"][_first_rows(split)]
