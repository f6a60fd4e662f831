"""The input iterator: its batches, its position, and its parts on several processes."""

import dataclasses

import jax
import numpy as np
import pytest

from capret_jax.config import (
    SIZES,
    AugmentConfig,
    CaptionConfig,
    DataConfig,
    ExperimentConfig,
    LoopConfig,
    LossConfig,
    ReadConfig,
    RegionBatchConfig,
    ViewConfig,
)
from capret_jax.data import pipeline
from capret_jax.data.batch import IGNORED_LABEL, NO_IDENTITY
from capret_jax.data.captions import TrainingCaptions, template_caption
from capret_jax.data.geometry import random_window_around
from capret_jax.data.items import ItemTable
from capret_jax.data.masking import MaskedCaptions
from capret_jax.data.photograph_sampler import PhotographSampler
from capret_jax.data.pipeline import TrainingText, abstract_batch, training_iterator
from capret_jax.data.sampler import BatchOrder, make_sampler
from capret_jax.data.tokenizer import CaptionEncoder, build_vocabulary, load_tokenizer
from capret_jax.data.vqa import ANSWER_TOKENS, SYNTHETIC_QUESTIONS, VqaSampler
from capret_jax.distributed.batch_share import BatchShare
from capret_jax.errors import InputError

B, K, SIZE = 8, 2, 32


@pytest.fixture(scope="module")
def captions(splits, tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    items = splits["train"].items
    build_vocabulary((template_caption(items.attributes_of(row)) for row in range(9)), path, 200)
    return CaptionEncoder(load_tokenizer(str(path)), 24)


@pytest.fixture
def iterate(splits, captions):
    def make(
        shard=BatchShare(),
        masked=False,
        threads=2,
        view=ViewConfig(),
        wide=0.0,
        asked=False,
        views=K,
        teacher="",
        regions=RegionBatchConfig(),
        region_crop=False,
        loss=LossConfig(arcface=0.0),
    ):
        config = ExperimentConfig(
            batch_size=B,
            model=dataclasses.replace(SIZES["tiny"], image_size=SIZE),
            data=DataConfig(
                max_tokens=24,
                views_per_identity=views,
                view=view,
                region_batch=regions,
                teacher=teacher,
                augment=AugmentConfig(wide=wide, region_crop=region_crop),
                read=ReadConfig(threads=threads, prefetch=2),
            ),
            loop=LoopConfig(steps=6),
            loss=dataclasses.replace(loss, distill=float(bool(teacher))),
        )
        items = splits["train"].items
        text = TrainingText(
            TrainingCaptions(CaptionConfig(), items),
            captions,
            MaskedCaptions(captions, config.loss) if masked else None,
            VqaSampler(SYNTHETIC_QUESTIONS, items, captions) if asked else None,
        )
        sampler = make_sampler(items, config, shard)
        return training_iterator(splits["train"], sampler, text, config)

    return make


def test_without_identities_no_batch_tells_one(iterate):
    assert np.any(next(iterate()).identity != NO_IDENTITY)
    for batch in iterate(views=0):
        assert np.all(batch.identity == NO_IDENTITY)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_shapes_and_dtypes(iterate):
    batch = next(iterate(masked=True, asked=True, wide=0.5))
    columns = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    for absent in ("teacher", "objects", "regions", "answer_weight", "pair_label"):
        assert columns.pop(absent) is None
    shapes = {name: column.shape for name, column in columns.items()}
    assert shapes["image"] == (B, SIZE, SIZE, 3) and batch.image.dtype == np.uint8
    assert shapes["token_ids"] == shapes["token_mask"] == shapes["masked_ids"] == (B, 24)
    assert shapes["box"] == (B, 4) and batch.box.dtype == np.float32
    assert shapes["identity"] == shapes["caption_id"] == (B,)
    assert batch.valid.all() and shapes["valid"] == shapes["located"] == (B,)
    assert batch.masked_positions.shape == batch.masked_labels.shape
    assert shapes["question_ids"] == shapes["question_mask"] == (B, 24)
    assert shapes["answer_ids"] == shapes["answer_mask"] == (B, ANSWER_TOKENS)


def test_abstract_batches_have_room_for_inserted_masks(iterate):
    loss = LossConfig(mlm=1.0, mlm_causal=True, mlm_insert=True, mlm_max=5)
    batch = next(iterate(masked=True, loss=dataclasses.replace(loss, arcface=0.0)))
    assert batch.masked_ids.shape == (B, 24 + 5) and batch.masked_labels.shape == (B, 5)
    data = DataConfig(max_tokens=24)
    expected = abstract_batch(ExperimentConfig(batch_size=B, data=data, loss=loss))
    for name in ("masked_ids", "masked_positions", "masked_labels"):
        assert getattr(batch, name).shape == getattr(expected, name).shape


def test_equal_captions_have_equal_ids(iterate):
    ids, tokens = zip(*((b.caption_id, b.token_ids) for b in iterate()), strict=True)
    ids, tokens = np.concatenate(ids), np.concatenate(tokens)
    same_tokens = (tokens[:, None] == tokens).all(axis=-1)
    np.testing.assert_array_equal(ids[:, None] == ids, same_tokens)


def test_a_restored_position_continues_with_the_very_next_batch(iterate):
    whole = list(iterate())
    assert len(whole) == 6
    first = iterate()
    for _ in range(3):
        next(first)
    second = iterate(threads=1)
    second.set_state(first.get_state())
    for expected, actual in zip(whole[3:], second, strict=True):
        assert_equal(expected, actual)


def test_two_processes_read_the_halves_of_each_batch(iterate):
    for whole, *halves in zip(
        iterate(), iterate(BatchShare.even(0, 2)), iterate(BatchShare.even(1, 2)), strict=True
    ):
        for field in ("image", "token_ids", "identity", "box"):
            together = np.concatenate([getattr(half, field) for half in halves])
            np.testing.assert_array_equal(together, getattr(whole, field))


def test_a_broken_image_stops_with_its_number(iterate, splits, monkeypatch):
    monkeypatch.setattr(type(splits["train"].records), "image", lambda *_: b"\xff\xd8 no jpeg")
    with pytest.raises(InputError, match=r"image \d+ does not decode"):
        next(iterate())


def test_whole_views_take_the_photograph_and_its_box(iterate, splits):
    crops, wholes = next(iterate()), next(iterate(view=ViewConfig("image")))
    np.testing.assert_array_equal(crops.identity, wholes.identity)
    area = {name: b.box[:, 2:].prod(axis=1) for name, b in (("crop", crops), ("whole", wholes))}
    assert (area["whole"] < area["crop"]).mean() > 0.5


def test_wide_views_teach_no_identity(iterate):
    batches = list(iterate(wide=0.5))
    identity = np.concatenate([batch.identity for batch in batches])
    assert 0.3 < (identity == NO_IDENTITY).mean() < 0.7
    # Only the wide views' boxes have to be found.
    located = np.concatenate([batch.located for batch in batches])
    np.testing.assert_array_equal(located, identity == NO_IDENTITY)
    share = np.concatenate([batch.box[:, 2:].prod(axis=1) for batch in batches])
    assert share[identity == NO_IDENTITY].mean() < share[identity != NO_IDENTITY].mean()


def test_wide_views_of_named_items_teach_no_identity_either(iterate, monkeypatch):
    usual = ItemTable.training_identities
    monkeypatch.setattr(ItemTable, "training_identities", lambda items: abs(usual(items)))
    identity = np.concatenate([batch.identity for batch in iterate(wide=0.5)])
    assert 0.3 < (identity == NO_IDENTITY).mean() < 0.7


def test_regions_bring_the_other_items_of_their_photograph_along(iterate, splits):
    items, seen = splits["train"].items, set()
    for batch in iterate(view=ViewConfig("region", regions_per_image=3), masked=True):
        assert batch.image.shape == (B, SIZE, SIZE, 3) and batch.valid.shape == (3 * B,)
        valid = batch.valid.reshape(B, 3)
        assert valid[:, 0].all()
        seen.update(valid.sum(axis=1).tolist())
        # What fills up teaches nothing, whichever loss looks at it.
        empty = ~batch.valid
        assert (batch.identity[empty] == NO_IDENTITY).all()
        assert (batch.masked_labels[empty] == IGNORED_LABEL).all()
        assert (batch.token_mask[empty].sum(axis=1) == 2).all()
    assert seen == set(np.unique(np.bincount(items.record)).clip(max=3).tolist()) >= {1, 2}


REGIONS = RegionBatchConfig(images=6, regions_per_image=2)


def test_a_region_batch_comes_beside_the_same_items(iterate):
    both = iterate(masked=True, regions=REGIONS)
    for alone, batch in zip(iterate(masked=True), both, strict=True):
        assert_equal(alone, dataclasses.replace(batch, regions=None))
        assert batch.regions.image.shape == (6, SIZE, SIZE, 3)
        assert batch.regions.token_ids.shape == batch.regions.masked_ids.shape == (12, 24)
        assert batch.regions.valid.reshape(6, 2)[:, 0].all()
        assert batch.regions.located is batch.regions.question_ids is None


def test_a_region_batch_resumes_with_its_step_and_is_split_over_processes(iterate):
    whole = list(iterate(regions=REGIONS))
    resumed = iterate(regions=REGIONS, threads=1)
    resumed.set_state({"next_index": 4})
    for expected, actual in zip(whole[4:], resumed, strict=True):
        assert_equal(expected, actual)
    halves = [iterate(BatchShare.even(i, 2), regions=REGIONS) for i in range(2)]
    for expected, *parts in zip(whole, *halves, strict=True):
        together = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        assert_equal(expected.regions, together.regions)


@pytest.mark.parametrize("most", [1, 3])
def test_windows_of_regions_show_the_drawn_item_and_most_of_others(iterate, splits, most):
    regions = RegionBatchConfig(images=16, regions_per_image=most)
    boxes, shown = [], []
    for batch in iterate(regions=regions, region_crop=True):
        valid = batch.regions.valid
        assert valid.reshape(16, most)[:, 0].all()
        assert (batch.regions.box[~valid] == 0).all()
        boxes.append(batch.regions.box[valid])
        shown.append(valid.sum())
    boxes = np.concatenate(boxes)
    edges = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    assert edges.min() >= -1e-6 and edges.max() <= 1 + 1e-6 and boxes[:, 2:].min() > 0
    # Parts of photographs, in which an item is larger than in the whole.
    items = splits["train"].items
    whole = np.concatenate(
        [batch.regions.box[batch.regions.valid] for batch in iterate(regions=regions)]
    )
    assert boxes[:, 2:].prod(axis=1).mean() > 1.2 * whole[:, 2:].prod(axis=1).mean()
    if most > 1:
        assert 16 * 6 < sum(shown) < np.bincount(items.record).mean() * 16 * 6


def test_items_are_kept_where_more_than_half_of_them_is_inside(iterate, splits, monkeypatch):
    items, expected = splits["train"].items, []

    def window_around(box, width, height, rng):
        window = random_window_around(box, width, height, rng)
        (row,) = np.flatnonzero((items.box == box).all(axis=1))
        count = 1
        for x1, y1, x2, y2 in items.box[items.rows_beside(row)]:
            wide = min(x2, window[2]) - max(x1, window[0])
            high = min(y2, window[3]) - max(y1, window[1])
            share = max(wide, 0) * max(high, 0) / ((x2 - x1) * (y2 - y1))
            count += share > 0.5
        expected.append(count)
        return window

    monkeypatch.setattr(pipeline, "random_window_around", window_around)
    regions = RegionBatchConfig(images=16, regions_per_image=8)
    batches = iterate(regions=regions, region_crop=True, threads=0)
    kept = [batch.regions.valid.reshape(16, 8).sum(axis=1) for batch in batches]
    np.testing.assert_array_equal(np.concatenate(kept), expected)
    assert len(set(expected)) > 1


def test_an_epoch_of_regions_visits_every_photograph_once(splits):
    items = splits["train"].items
    photographs = len(np.unique(items.record))
    size = next(n for n in (8, 7, 6, 5) if photographs % n == 0)
    order = BatchOrder(size, 2 * photographs // size, seed=0)
    draws = [
        PhotographSampler(items, order, "data.region_batch.images")[i]
        for i in range(2 * photographs)
    ]
    records = items.record[[draw.row for draw in draws]].reshape(2, photographs)
    for epoch in records:
        np.testing.assert_array_equal(np.sort(epoch), np.unique(items.record))
    assert not np.array_equal(*records)
    assert len({draw.seed for draw in draws}) == len(draws)
    # Every item has its turn.
    several = [draw.row for seed in range(20) for draw in region_draws(items, seed)]
    assert set(several) == set(range(len(items)))
    with pytest.raises(InputError, match=r"region_batch.images=1000 is more than the \d+ photog"):
        PhotographSampler(items, BatchOrder(1000, 1, 0), "data.region_batch.images")


def test_few_photographs_repeat_where_they_may(splits):
    items = splits["train"].items
    photographs = len(np.unique(items.record))
    sampler = PhotographSampler(items, BatchOrder(2 * photographs, 1, 0), stream=1)
    records = [items.record[sampler[i].row] for i in range(len(sampler))]
    np.testing.assert_array_equal(np.bincount(records)[np.unique(items.record)], 2)
    assert len({sampler[i].seed for i in range(len(sampler))}) == len(sampler)


def region_draws(items, seed):
    order = BatchOrder(1, len(np.unique(items.record)), seed)
    sampler = PhotographSampler(items, order, "data.region_batch.images")
    return [sampler[i] for i in range(len(sampler))]


def test_captions_that_tell_sides_are_never_mirrored(iterate, monkeypatch):
    usual = np.concatenate([batch.box for batch in iterate()])
    monkeypatch.setattr(TrainingCaptions, "__call__", lambda *_: "a skirt with a slit on the Left")
    never = np.concatenate([batch.box for batch in iterate()])
    mirrored = ~np.isclose(usual[:, 0], never[:, 0], atol=1e-6)
    assert 0.2 < mirrored.mean() < 0.7
    np.testing.assert_allclose(usual[mirrored, 0], 1 - never[mirrored, 0], atol=1e-6)


def test_views_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match="data.view.kind='zoom' is none of"):
        ViewConfig("zoom")
    with pytest.raises(InputError, match="data.view.regions_per_image=2 needs"):
        ViewConfig("crop", regions_per_image=2)


def test_an_empty_split_is_refused(prepared_dir):
    from capret_jax.data.records import Records
    from capret_jax.synthetic import builder as synthetic

    with pytest.raises(InputError, match="has no test images"):
        Records(synthetic.prepare(prepared_dir, "mini"), "test")


def test_a_teachers_embedding_comes_with_its_item(iterate, splits, tmp_path):
    items = splits["train"].items
    table = np.stack([items["image_id"], items["number"]], axis=1).astype(np.float16)
    np.save(tmp_path / "teacher.npy", table)
    labels = items.training_identities()
    for batch in iterate(teacher=str(tmp_path / "teacher.npy")):
        assert batch.teacher.shape == (B, 2) and batch.teacher.dtype == np.float32
        for (image_id, number), identity in zip(batch.teacher, batch.identity, strict=True):
            row = (items["image_id"] == image_id) & (items["number"] == number)
            assert labels[row] == identity
    assert next(iterate()).teacher is None
