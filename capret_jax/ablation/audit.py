"""What could leak: from the annotations into captions, and from training into validation."""

import os
import pathlib
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from capret_jax.ablation.grid import Plan
from capret_jax.checkpoints.loading import load_setup
from capret_jax.config import DataConfig, build
from capret_jax.data.pipeline import Split
from capret_jax.data.transforms import frame
from capret_jax.datasets import Dataset, open_dataset

# Bits in which the hashes of a picture and of its copy, scaled or compressed anew, may differ.
NEAR = 4
_SIDE, _CELLS = 64, 8
_ROWS = 64
_SHOWN = 20


def audit(plan: Plan, dataset: Dataset, cache: pathlib.Path) -> dict[str, Any]:
    """
    Args:
        plan: all of whose cells are done.
        dataset: that they ran on.
        cache: folder for the pictures' hashes.

    Returns:
        "training_captions", what can reach those of each arm; "query_captions", of each embedding
        and kind of captions at inference; "shared_identities" between the splits;
        "near_duplicates", for each set of pictures that something was trained on, how many of the
        validation split's are in it, too, and the first pairs; and "unknown", models of whose
        training pictures nothing is known here.
    """
    cache.mkdir(parents=True, exist_ok=True)
    asked = _hashed(dataset.validation, cache / "validation.npy")
    sets, unknown = {"the training split": dataset.train}, []
    for folder in dict.fromkeys((plan.start, *plan.lookers.values())):
        data = load_setup(folder).data
        if data is None:
            unknown.append(folder)
        else:
            sets[f"what {pathlib.Path(folder).name} learnt from"] = _training_split(data)
    return {
        "training_captions": {cell.captions: plan.teaches(cell) for cell in plan.cells},
        "query_captions": {
            f"{reading.cell.embedding}, {reading.said}": plan.reaches(reading)
            for reading in plan.readings()
        },
        "shared_identities": shared_identities(dataset),
        "near_duplicates": {
            name: _duplicates(
                dataset.validation, asked, split, _hashed(split, cache / f"{_name_of(split)}.npy")
            )
            for name, split in sets.items()
        },
        "unknown": unknown,
    }


def _training_split(data: dict) -> Split:
    """Of a run's `config.data`."""
    return open_dataset(build(DataConfig, data, "config.data")).train


def _name_of(split: Split) -> str:
    """The same for the same pictures."""
    return f"{zlib.crc32(split.items['image_id'].tobytes()):08x}-{len(split.items)}"


def _duplicates(queries: Split, asked: np.ndarray, others: Split, known: np.ndarray) -> dict:
    pairs = near_duplicates(asked, known)
    names = _image_ids(queries)[pairs[:, 0]], _image_ids(others)[pairs[:, 1]]
    shown = zip(*(column[:_SHOWN].tolist() for column in names), strict=True)
    return {"pictures": len(np.unique(pairs[:, 0])), "pairs": [list(pair) for pair in shown]}


def shared_identities(dataset: Dataset) -> int:
    """Identities (pair_id, style > 0) that are in both splits."""
    pairs = []
    for split in (dataset.train, dataset.validation):
        known = split.items["style"] > 0
        columns = (split.items["pair_id"][known], split.items["style"][known])
        pairs.append(set(zip(*(column.tolist() for column in columns), strict=True)))
    return len(pairs[0] & pairs[1])


def _hashed(split: Split, path: pathlib.Path) -> np.ndarray:
    """Of a dataset they take long: they are kept, whole or not at all."""
    if not path.exists():
        partial = path.with_suffix(".partial.npy")
        np.save(partial, hashes(split))
        partial.replace(path)
    return np.load(path)


def hashes(split: Split) -> np.ndarray:
    """(pictures, 2) uint64: whether each of 8 x 8 grey cells is darker than the next one, to the
    right and below (dHash in both directions, 112 bits).
    """
    rows = _first_rows(split)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = threads.map(lambda row: _hash(split, int(row)), rows, chunksize=64)
        return np.stack([*tqdm(found, "looking for copies", len(rows), leave=False)])


def _hash(split: Split, row: int) -> np.ndarray:
    photograph = split.photograph(row)
    grey = photograph.crop(frame(photograph), _SIDE).mean(axis=-1)
    cells = grey.reshape(_CELLS, _SIDE // _CELLS, _CELLS, -1).mean(axis=(1, 3))
    bits = np.concatenate(
        [(cells[:, 1:] > cells[:, :-1]).ravel(), (cells[1:] > cells[:-1]).ravel()]
    )
    return np.packbits(np.pad(bits, (0, 128 - len(bits)))).view(np.uint64)


def near_duplicates(queries: np.ndarray, others: np.ndarray, bits: int = NEAR) -> np.ndarray:
    """(n, 2) and (m, 2) hashes -> (pairs, 2) int64 places of those that differ in few bits."""
    found = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(queries), _ROWS):
        differ = queries[start : start + _ROWS, None] ^ others[None]
        near = np.argwhere(np.bitwise_count(differ).sum(axis=-1) <= bits)
        found.append(near + np.array([start, 0]))
    return np.concatenate(found)


def _first_rows(split: Split) -> np.ndarray:
    """One item of each picture, in the order of the records."""
    return np.unique(split.items.record, return_index=True)[1]


def _image_ids(split: Split) -> np.ndarray:
    return split.items["image_id"][_first_rows(split)]
