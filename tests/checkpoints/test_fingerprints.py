"""Fingerprints of what a checkpoint was made from, and checksums of what is in it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.checkpoints.fingerprints import (
    check_data,
    check_vocabulary,
    checksum,
    items_fingerprint,
    table_fingerprint,
    vocabulary_fingerprint,
)
from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import batch_sharding, make_mesh
from capret_jax.errors import InputError


class Words:
    def __init__(self, *words):
        self.words = words

    def get_vocab(self):
        return {word: number for number, word in enumerate(self.words)}


TREE = {
    "kernel": np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32),
    "half": np.linspace(-1, 1, 8).astype(jnp.bfloat16),
    "step": np.int32(7),
    "filled": np.array([True, False]),
}


def test_every_changed_bit_changes_the_checksum():
    whole = int(checksum(TREE))
    for name in ("kernel", "half", "step"):
        values = np.atleast_1d(TREE[name])
        words = values.view(np.uint16 if name == "half" else np.uint32)
        for place in range(0, words.size, 5):
            for bit in range(0, 8 * words.itemsize, 3):
                damaged = words.copy()
                damaged.reshape(-1)[place] ^= words.dtype.type(1 << bit)
                changed = damaged.view(values.dtype).reshape(np.shape(TREE[name]))
                assert int(checksum(TREE | {name: changed})) != whole
    assert int(checksum(TREE | {"filled": ~TREE["filled"]})) != whole
    rows = TREE["kernel"][[1, 0, *range(2, 8)]]
    assert int(checksum(TREE | {"kernel": rows})) != whole


def test_the_checksum_does_not_depend_on_the_devices():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), jax.devices()[:8])
    sharded = jax.device_put(TREE["kernel"], batch_sharding(mesh))
    assert int(checksum(TREE | {"kernel": sharded})) == int(checksum(TREE))


def test_a_vocabulary_is_its_tokens_in_their_order():
    words = Words("a", "red", "dress")
    saved = {"vocabulary": vocabulary_fingerprint(words)}
    check_vocabulary(saved, Words("a", "red", "dress"), "vocab.txt")
    check_vocabulary({}, Words("anything"), "vocab.txt")  # of an older version
    for other in (Words("a", "dress", "red"), Words("a", "red"), Words("a", "red", "dress", "x")):
        with pytest.raises(InputError, match=r"vocab\.txt does not have the tokens"):
            check_vocabulary(saved, other, "vocab.txt")


def test_training_items_are_known_by_their_identities(splits):
    items = splits["train"].items
    identities = items.training_identities()
    saved = items_fingerprint(items, identities)
    assert saved["items"] == len(items) and saved["identities"] == identities.max() + 1
    now = {"items": items_fingerprint(items, identities), "teacher": ""}
    check_data({"items": saved, "teacher": ""}, now, "runs/x")
    check_data({}, now, "runs/x")  # of an older version
    fewer = dataclasses.replace(
        items,
        record=items.record[:-1],
        is_shop=items.is_shop[:-1],
        attributes={name: column[:-1] for name, column in items.attributes.items()},
    )
    for other in (
        items_fingerprint(fewer, fewer.training_identities()),
        items_fingerprint(items, np.roll(identities, 1)),
    ):
        with pytest.raises(InputError, match=rf"runs/x was trained on {len(items)} items of"):
            check_data({"items": saved}, {"items": other, "teacher": ""}, "runs/x")


def test_a_teacher_is_known_by_its_values():
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    items = {"items": {"items": 1, "identities": 1, "sha256": ""}}
    saved = items | {"teacher": table_fingerprint(table)}
    check_data(saved, items | {"teacher": table_fingerprint(table.copy())}, "runs/x")
    for other in (table + 1, table.astype(np.float64), table.reshape(3, 4)):
        with pytest.raises(InputError, match="runs/x was trained with other embeddings"):
            check_data(saved, items | {"teacher": table_fingerprint(other)}, "runs/x")
