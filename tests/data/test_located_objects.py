"""Pictures for the loss of writing locations: their scale, their boxes, and which objects stay."""

import dataclasses

import jax
import numpy as np
import pytest

from capret_jax.config import (
    AugmentConfig,
    DataConfig,
    ExperimentConfig,
    LocationBatchConfig,
    LoopConfig,
    LossConfig,
)
from capret_jax.data.captions import TrainingCaptions
from capret_jax.data.images import Photograph
from capret_jax.data.located_objects import pad_objects, scaled_view
from capret_jax.data.pipeline import TrainingText, abstract_batch, training_iterator
from capret_jax.data.sampler import make_sampler
from capret_jax.data.tokenizer import Tokens
from capret_jax.data.transforms import Augmentation, View
from capret_jax.errors import InputError
from tests.small_model import SMALL_MODEL

WIDTH, HEIGHT, SIZE = 120, 80, 96
UNCHANGED = AugmentConfig(flip=0.0, brightness=0.0, colour=0.0, erase=0.0)
RED = (220, 30, 30)


@pytest.fixture(scope="module")
def red_box() -> tuple[Photograph, np.ndarray]:
    """A red rectangle on blue, and its box in pixels."""
    pixels = np.full((HEIGHT, WIDTH, 3), (30, 30, 220), np.uint8)
    pixels[20:60, 30:90] = RED
    return Photograph.from_pixels(pixels), np.array([[30.0, 20.0, 90.0, 60.0]])


@pytest.mark.parametrize("scale", [(0.3, 0.9), (1.0, 1.0), (1.1, 1.6)])
def test_boxes_follow_the_scale(red_box, scale):
    augment, rng = Augmentation(UNCHANGED, SIZE), np.random.default_rng(0)
    sides = []
    for _ in range(20):
        view, kept = scaled_view(*red_box, augment, scale, rng)
        if not len(kept):
            continue
        cx, cy, w, h = view.boxes[0] * SIZE
        red = (view.image[..., 0] > 125) & (view.image[..., 2] < 125)
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        # Interpolation moves an edge by up to a pixel, and a window is cut at whole pixels.
        edges = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        np.testing.assert_allclose(edges, expected, atol=2)
        sides.append(w / SIZE / 0.5)
    assert max(sides) <= scale[1] + 0.03 and min(sides) > scale[0] / 2
    if scale[0] < scale[1] <= 0.9:
        assert max(sides) > 0.75 and min(sides) < 0.45


def test_the_surroundings_of_a_small_photograph_are_grey(red_box):
    augment, rng = Augmentation(UNCHANGED, SIZE), np.random.default_rng(0)
    view, _ = scaled_view(*red_box, augment, (0.5, 0.5), rng)
    grey = (view.image == 127).all(axis=2)
    assert grey.mean() == pytest.approx(0.75, abs=0.01)


def test_objects_outside_of_the_view_are_left_out(red_box):
    photograph, _ = red_box
    boxes = np.array([[0.0, 0.0, 20.0, 10.0], [100.0, 70.0, 120.0, 80.0], [50.0, 35.0, 70.0, 45.0]])
    augment, rng = Augmentation(UNCHANGED, SIZE), np.random.default_rng(0)
    seen = [tuple(scaled_view(photograph, boxes, augment, (1.9, 2.0), rng)[1]) for _ in range(30)]
    assert len(set(seen)) > 2
    assert not any({0, 1} <= set(kept) for kept in seen)  # opposite corners


def test_of_too_many_objects_the_largest_stay():
    boxes = np.full((4, 4), 0.5, np.float32)
    boxes[:, 2:] = np.array([0.1, 0.4, 0.2, 0.3])[:, None]
    view = View(np.zeros((8, 8, 3), np.uint8), boxes)
    objects = pad_objects(view, np.array([1, 2, 3, 4]), 2)
    np.testing.assert_array_equal(objects.category, [[2, 4]])
    np.testing.assert_allclose(objects.box[0, :, 2], [0.4, 0.3])
    padded = pad_objects(view, np.array([1, 2, 3, 4]), 6)
    np.testing.assert_array_equal(padded.category, [[2, 4, 3, 1, 0, 0]])
    assert not padded.box[0, 4:].any()


@pytest.fixture(scope="module")
def batches(splits):
    """Two steps of batches with photographs beside them, and their config."""
    train = splits["train"]
    config = ExperimentConfig(
        batch_size=4,
        model=dataclasses.replace(SMALL_MODEL, location_items=3),
        data=DataConfig(
            max_tokens=8,
            views_per_identity=2,
            location_batch=LocationBatchConfig(images=6, scale=(1.0, 1.0)),
            augment=UNCHANGED,
        ),
        loss=LossConfig(locations=1.0),
        loop=LoopConfig(steps=2),
    )
    sampler = make_sampler(train.items, config)
    captions = TrainingCaptions(config.data.captions, train.items)
    text = TrainingText(captions, lambda _: Tokens(np.ones(8, np.int32), np.ones(8, np.int32)))
    return config, train, list(training_iterator(train, sampler, text, config))


def test_photographs_come_with_all_of_their_items(batches):
    config, train, steps = batches
    assert len(steps) == 2
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), abstract_batch(config))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), steps[0]) == shapes
    assert steps[0].images == 4 + 6
    counts = np.bincount(np.unique(train.items.record, return_counts=True)[1])
    found = [*np.concatenate([(step.objects.category > 0).sum(axis=1) for step in steps])]
    assert set(found) <= set(np.flatnonzero(counts)) and max(found) > 1
    items = train.items
    known = {
        tuple(np.sort(items["category_id"][items.record == record]))
        for record in np.unique(items.record)
    }
    for step in steps:
        for categories in step.objects.category:
            assert tuple(np.sort(categories[categories > 0])) in known
    # Independent of the batch of items, and of the batch of regions.
    assert not np.array_equal(steps[0].objects.image[0], steps[1].objects.image[0])


def test_scales_that_cannot_be_are_refused():
    for scale in ((0.0, 1.0), (2.0, 1.0), (1.0,)):
        with pytest.raises(InputError, match=r"data.location_batch.scale=.* must be the smallest"):
            LocationBatchConfig(scale=scale)
    with pytest.raises(InputError, match=r"data.location_batch.images=0 is less than 1"):
        LocationBatchConfig(images=0)
