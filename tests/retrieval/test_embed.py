"""Evaluation views in batches: every item once, in order, on any number of processes."""

import numpy as np
import pytest

from capret_jax.data.pipeline import ReadConfig
from capret_jax.data.sampler import Shard
from capret_jax.retrieval.embed import Views

SIZE, BATCH = 16, 8


@pytest.fixture(scope="module")
def split(splits):
    return splits["validation"]


def batches(split, shard=Shard()):
    return list(Views(split, SIZE, 0.1, BATCH, ReadConfig(threads=2, prefetch=2), shard))


def test_every_item_comes_once_and_in_order(split):
    count = len(split.items)
    assert count % BATCH, "the last batch should need filling up"
    pictures = np.concatenate(batches(split))
    assert len(pictures) == -(-count // BATCH) * BATCH
    for row in range(count):
        expected = split.evaluation_view(row, SIZE, 0.1).image
        np.testing.assert_array_equal(pictures[row], expected)
    np.testing.assert_array_equal(pictures[count:], pictures[count - 1 :][: len(pictures) - count])


def test_two_processes_together_have_each_batch(split):
    whole = batches(split)
    halves = [batches(split, Shard(i, 2)) for i in range(2)]
    for together, *parts in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), together)
