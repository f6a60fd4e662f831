"""Evaluation pictures in batches: each item once and in order, on any number of processes."""

import types

import numpy as np
import pytest

from capret_jax.config import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    ReadConfig,
    ViewConfig,
)
from capret_jax.data.transforms import whole_view
from capret_jax.distributed.batch_share import BatchShare
from capret_jax.evaluation.colour_histogram import histograms
from capret_jax.evaluation.photograph_reader import PhotographReader
from tests.small_model import SMALL_MODEL

SIZE, BATCH = 32, 8
CROP, WHOLE = ViewConfig(), ViewConfig("image")


@pytest.fixture(scope="module")
def split(splits):
    return splits["validation"]


def reader(split, view=CROP, share=BatchShare(), batch_size=BATCH, **options):
    config = ExperimentConfig(
        model=SMALL_MODEL,
        data=DataConfig(view=view, read=ReadConfig(threads=2, prefetch=2)),
        evaluation=EvaluationConfig(batch_size=batch_size),
    )
    run = types.SimpleNamespace(config=config, share=share)
    return PhotographReader(run, split, **options)


def test_every_item_comes_once_and_in_order(split):
    count = len(split.items)
    assert count % BATCH, "the last batch should have padding"
    images = np.concatenate([pictures.image for pictures, _ in reader(split).batches()])
    assert len(images) == -(-count // BATCH) * BATCH
    for row in range(count):
        np.testing.assert_array_equal(images[row], split.crop_view(row, SIZE, 0.1).image)


@pytest.mark.parametrize("view", [CROP, WHOLE], ids=["crop", "image"])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_read_equal_parts_of_every_batch(split, view, processes):
    readers = [reader(split, view, BatchShare.even(i, processes), 6) for i in range(processes)]
    batches = [[pictures.boxes for pictures, _ in one.batches()] for one in readers]
    together = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    assert {len(boxes) for boxes in together} == {6}
    alone = reader(split, view)
    expected = alone.by_item(np.concatenate([batch.boxes for batch, _ in alone.batches()]))
    np.testing.assert_array_equal(readers[0].by_item(np.concatenate(together)), expected)
    # Every process can compute the rows of a global batch.
    for number, boxes in enumerate(together):
        rows, places = readers[-1].batch_rows(number)
        np.testing.assert_array_equal(boxes[places], expected[rows])


@pytest.mark.parametrize("processes", [1, 2, 3, 40])
def test_every_photograph_begins_on_one_process(split, processes):
    """A photograph in which the parts of two processes meet is read by both."""
    readers = [
        reader(split, CROP, BatchShare.even(i, processes), processes) for i in range(processes)
    ]
    photographs = [views for one in readers for _, read in one.batches() for views in read]
    begun = [views.first_row for views in photographs if views.rows[0] == views.first_row]
    first_rows = np.unique(split.items.record, return_index=True)[1]
    np.testing.assert_array_equal(begun, first_rows)
    rows = np.concatenate([views.rows for views in photographs])
    np.testing.assert_array_equal(rows, np.arange(len(split.items)))


def test_items_of_a_photograph_share_its_picture(split):
    whole = reader(split, WHOLE)
    photographs = np.unique(split.items.record)
    assert len(whole.rows) == len(photographs) < len(split.items)
    batches = [pictures for pictures, _ in whole.batches()]
    boxes = whole.by_item(np.concatenate([batch.boxes for batch in batches]))
    images = np.concatenate([batch.image for batch in batches])
    for row, record in enumerate(split.items.record):
        image, (box,) = whole_view(split.photograph(row), split.items.box[[row]], SIZE)
        np.testing.assert_array_equal(images[np.searchsorted(photographs, record)], image)
        np.testing.assert_array_equal(boxes[row], box)


def test_histograms_are_of_the_boxes_without_a_margin(split):
    rows, values = zip(
        *(
            (views.rows, views.histograms)
            for _, read in reader(split, with_histograms=True).batches()
            for views in read
        ),
        strict=True,
    )
    crops = [split.crop_view(row, SIZE, 0.0).image for row in np.concatenate(rows)]
    np.testing.assert_array_equal(np.concatenate(values), histograms(np.stack(crops)))
