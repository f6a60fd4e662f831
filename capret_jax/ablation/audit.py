"""What could leak: from the annotations into captions, and from training into validation."""

from typing import Any

import numpy as np

from capret_jax.ablation.plan import Plan
from capret_jax.data.dataset import Dataset
from capret_jax.data.pipeline import Split
from capret_jax.data.transforms import frame

# Bits in which the hashes of a picture and of its copy, scaled or compressed anew, may differ.
NEAR = 4
_SIDE, _CELLS = 64, 8
_ROWS = 256
_SHOWN = 20


def audit(plan: Plan, dataset: Dataset) -> dict[str, Any]:
    """
    Returns:
        "training_captions", of each arm; "query_captions", of each embedding and kind of captions
        at inference; "shared_identities" between the splits; and "near_duplicates", pictures of the
        validation split that are in the training split, too: their number, and the first pairs.
    """
    training, asked = {}, {}
    for reading in plan.readings():
        training[reading.cell.captions] = plan.teaches(reading.cell)
        asked[f"{reading.cell.embedding}, {reading.said}"] = plan.reaches(reading)
    pairs = near_duplicates(hashes(dataset.validation), hashes(dataset.train))
    return {
        "training_captions": training,
        "query_captions": asked,
        "shared_identities": shared_identities(dataset),
        "near_duplicates": {
            "bits": NEAR,
            "pictures": len(np.unique(pairs[:, 0])),
            "pairs": [_named(dataset, *pair) for pair in pairs[:_SHOWN].tolist()],
        },
    }


def shared_identities(dataset: Dataset) -> int:
    """Identities (pair_id, style > 0) that are in both splits."""
    pairs = []
    for split in (dataset.train, dataset.validation):
        known = split.items["style"] > 0
        columns = (split.items["pair_id"][known], split.items["style"][known])
        pairs.append(set(zip(*(column.tolist() for column in columns), strict=True)))
    return len(pairs[0] & pairs[1])


def hashes(split: Split) -> np.ndarray:
    """(pictures, 2) uint64: whether each of 8 x 8 grey cells is darker than the next one, to the
    right and below (dHash in both directions, 112 bits).
    """
    _, rows = np.unique(split.items.record, return_index=True)
    return np.stack([_hash(split, int(row)) for row in rows])


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


def _named(dataset: Dataset, query: int, other: int) -> dict[str, int]:
    names = {}
    for name, split, place in (
        ("validation", dataset.validation, query),
        ("train", dataset.train, other),
    ):
        _, rows = np.unique(split.items.record, return_index=True)
        names[name] = int(split.items["image_id"][rows[place]])
    return names
