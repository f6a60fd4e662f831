"""Evaluation views in batches: every item once, in order, on any number of processes."""

import jax
import numpy as np
import pytest

from capret_jax.config import MeshConfig, ReadConfig, ViewConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.distributed.part import Part
from capret_jax.models.beit import pool_regions, region_mask
from capret_jax.models.x2vlm import abstract_model, bind, init_params, normalize_pixels
from capret_jax.retrieval.embedding import Embedder, EvaluationViews
from tests.conftest import SMALL_MODEL

SIZE, BATCH = 32, 8
WHOLE = ViewConfig("image")


@pytest.fixture(scope="module")
def split(splits):
    return splits["validation"]


def views(split, view=ViewConfig(), shard=Part()):
    return EvaluationViews(split, SIZE, view, 0.1, BATCH, ReadConfig(threads=2, prefetch=2), shard)


def test_every_item_comes_once_and_in_order(split):
    count = len(split.items)
    assert count % BATCH, "the last batch should need filling up"
    pictures = np.concatenate([batch.image for batch in views(split)])
    assert len(pictures) == -(-count // BATCH) * BATCH
    for row in range(count):
        expected = split.crop_view(row, SIZE, 0.1).image
        np.testing.assert_array_equal(pictures[row], expected)
    np.testing.assert_array_equal(pictures[count:], pictures[count - 1 :][: len(pictures) - count])


@pytest.mark.parametrize("view", [ViewConfig(), WHOLE])
def test_two_processes_together_have_each_batch(split, view):
    halves = [list(views(split, view, Part(i, 2))) for i in range(2)]
    for together, *parts in zip(views(split, view), *halves, strict=True):
        for whole, *pieces in zip(together, *parts, strict=True):
            np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_items_of_a_photograph_share_its_picture(split):
    whole = views(split, WHOLE)
    photographs = np.unique(split.items.record)
    assert len(whole.rows) == len(photographs) < len(split.items)
    batches = list(whole)
    boxes = whole.by_item(np.concatenate([batch.boxes for batch in batches]))
    images = np.concatenate([batch.image for batch in batches])
    for row, record in enumerate(split.items.record):
        image, (box,) = split.whole_view(np.array([row]), SIZE)
        np.testing.assert_array_equal(images[np.searchsorted(photographs, record)], image)
        np.testing.assert_array_equal(boxes[row], box)


class TestEmbeddings:
    @pytest.fixture(scope="class")
    def embed(self, split):
        graphdef, abstract = abstract_model(SMALL_MODEL)
        params = init_params(SMALL_MODEL, jax.random.key(0))

        def run(view):
            embedder = Embedder(
                graphdef, abstract, view.regions, "float32", make_mesh(MeshConfig())
            )
            return embedder(params, views(split, view))

        return run, bind(graphdef, params)

    def test_regions_are_pooled_from_one_picture(self, split, embed):
        run, model = embed
        embeddings = run(ViewConfig("region"))
        rows = np.flatnonzero(split.items.record == np.bincount(split.items.record).argmax())
        assert len(rows) > 1
        image, boxes = split.whole_view(rows, SIZE)
        states = model.encode_image(normalize_pixels(image[None]))
        corners = np.concatenate(
            [boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1
        )
        mask = region_mask(corners * SIZE, SIZE // 16)
        regions = pool_regions(states[np.zeros(len(rows), int)], mask)
        np.testing.assert_allclose(embeddings[rows], model.image_features(regions), atol=2e-5)

    def test_whole_images_give_all_their_items_one_embedding(self, split, embed):
        embeddings = embed[0](WHOLE)
        first = np.searchsorted(split.items.record, split.items.record)
        np.testing.assert_array_equal(embeddings, embeddings[first])
        assert not np.allclose(embeddings[0], embeddings[-1])
