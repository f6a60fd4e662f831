"""Samplers: balanced and complete batches, the same for any number of processes."""

import dataclasses

import numpy as np
import pytest

from capret_jax.config import DataConfig, ExperimentConfig, LoopConfig, LossConfig
from capret_jax.data.batch import NO_IDENTITY
from capret_jax.data.items import ItemTable
from capret_jax.data.sampler import BatchOrder, IdentitySampler, make_sampler
from capret_jax.distributed.batch_share import BatchShare
from capret_jax.errors import InputError

B, K = 8, 4  # so P = 2


def sampling_config(batch_size=B, views=K, steps=12, seed=0):
    return ExperimentConfig(
        seed=seed,
        batch_size=batch_size,
        data=DataConfig(views_per_identity=views),
        loss=LossConfig(arcface=0.0),
        loop=LoopConfig(steps=steps),
    )


def draws(items, share=BatchShare(), steps=12, seed=0):
    sampler = IdentitySampler(items, BatchOrder(B, steps, seed, share), K)
    return [sampler[i] for i in range(len(sampler))]


@pytest.fixture
def items(splits):
    return splits["train"].items


def test_a_batch_has_p_identities_and_k_views_half_of_each_source(items):
    labels = items.training_identities()
    everything = draws(items)
    for start in range(0, len(everything), B):
        batch = everything[start : start + B]
        rows = np.array([draw.row for draw in batch])
        identities = labels[rows]
        np.testing.assert_array_equal(np.unique(identities, return_counts=True)[1], [K] * (B // K))
        for identity in np.unique(identities):
            views = rows[identities == identity]
            assert items.is_shop[views].sum() == K // 2
            assert len(set(views.tolist())) == K  # no view twice
        assert len(set(identities[: B // K].tolist())) == B // K  # neighbours differ


def test_an_epoch_visits_every_identity_once(items):
    classes = make_sampler(items, sampling_config()).classes
    epoch = draws(items, steps=classes // (B // K))
    labels = items.training_identities()[[draw.row for draw in epoch]]
    counts = np.bincount(labels, minlength=classes)
    np.testing.assert_array_equal(counts, K)


def test_class_sizes_count_the_items_of_each_identity(items):
    labels = items.training_identities()
    sampler = make_sampler(items, sampling_config())
    expected = [(labels == c).sum() for c in range(sampler.classes)]
    np.testing.assert_array_equal(sampler.class_sizes, expected)


def random_items(count, pairs, seed=0):
    rng = np.random.default_rng(seed)
    return ItemTable(
        record=np.arange(count),
        is_shop=rng.random(count) < 0.5,
        box=np.zeros((count, 4), np.float32),
        attributes={
            "pair_id": rng.integers(0, pairs, count),
            "style": rng.integers(0, 3, count),
        },
    )


def test_rows_are_grouped_by_identity_and_source_in_ascending_order():
    items = random_items(2000, 150)
    sampler = IdentitySampler(items, BatchOrder(B, 1, seed=0), K)
    labels = items.training_identities()
    assert sampler.classes > 200
    for identity in range(sampler.classes):
        for shop in (True, False):
            expected = np.flatnonzero((labels == identity) & (items.is_shop == shop))
            np.testing.assert_array_equal(sampler.rows_of(identity, shop), expected)


def test_draws_are_those_of_earlier_versions():
    # A change of the order would change every run that is resumed.
    sampler = IdentitySampler(random_items(300, 20), BatchOrder(B, 40, seed=5), K)
    assert [sampler[i].row for i in (0, 1, 2, 7, 100, 319)] == [292, 200, 184, 115, 293, 197]
    assert sampler[9].seed == (5, 2, 1, 1)


def test_epochs_differ_and_the_seed_decides(items):
    first, again, other = draws(items), draws(items), draws(items, seed=1)
    assert first == again
    assert [d.row for d in first] != [d.row for d in other]
    labels = items.training_identities()[[draw.row for draw in first]]
    half = len(first) // 2
    assert labels[:half].tolist() != labels[half:].tolist()
    assert len({draw.seed for draw in first}) == len(first)


def one_by_one(items, share=BatchShare(), steps=12, seed=0):
    sampler = make_sampler(items, sampling_config(views=0, steps=steps, seed=seed), share)
    return [sampler[i] for i in range(len(sampler))]


def test_without_identities_the_same_items_come_one_by_one(items):
    sampler = make_sampler(items, sampling_config(views=0))
    assert np.all(sampler.identities == NO_IDENTITY)
    known = np.flatnonzero(items.training_identities() != NO_IDENTITY)
    per_epoch = len(known) // B * B
    rows = [draw.row for draw in one_by_one(items, steps=2 * len(known) // B)]
    first, second = rows[:per_epoch], rows[per_epoch : 2 * per_epoch]
    for epoch in (first, second):
        assert len(set(epoch)) == per_epoch and set(epoch) <= set(known.tolist())
    assert first != second
    # Pairs of views are no more frequent in a batch than anywhere.
    labels = items.training_identities()[first[:B]]
    assert len(set(labels.tolist())) > B // K
    assert one_by_one(items) == one_by_one(items) != one_by_one(items, seed=1)


def pairs_of_views(items, share=BatchShare(), steps=12, seed=0):
    config = sampling_config(views=0, steps=steps, seed=seed)
    data = dataclasses.replace(config.data, views_per_item=2)
    sampler = make_sampler(items, dataclasses.replace(config, data=data), share)
    return [sampler[i] for i in range(len(sampler))]


def test_without_identities_each_item_can_be_its_own_class(items):
    config = sampling_config(views=0)
    data = dataclasses.replace(config.data, views_per_item=2)
    sampler = make_sampler(items, dataclasses.replace(config, data=data))
    known = np.flatnonzero(items.training_identities() != NO_IDENTITY)
    np.testing.assert_array_equal(sampler.identities[known], np.arange(len(known)))
    assert sampler.classes == len(sampler.class_sizes) == len(known)
    assert (sampler.identities == NO_IDENTITY).sum() == len(items) - len(known)
    drawn = pairs_of_views(items, steps=len(known) // (B // 2))
    rows = np.array([draw.row for draw in drawn]).reshape(-1, 2, B // 2)
    np.testing.assert_array_equal(rows[:, 0], rows[:, 1])
    assert len(np.unique(rows)) == rows.size // 2  # an epoch visits each item once
    assert len({draw.seed for draw in drawn}) == len(drawn)  # in two different views


@pytest.mark.parametrize("draws", [draws, one_by_one, pairs_of_views])
def test_two_processes_share_each_batch_between_them(items, draws):
    whole = draws(items)
    halves = [draws(items, BatchShare.even(index, 2)) for index in range(2)]
    together = [
        draw
        for step in range(len(whole) // B)
        for half in halves
        for draw in half[step * B // 2 : (step + 1) * B // 2]
    ]
    assert together == whole


@pytest.mark.parametrize(
    "batch_size, views, processes, message",
    [
        (8, 3, 1, "views_per_identity=3 must be even"),
        (10, 4, 1, "batch_size=10 must be a multiple"),
        (8, 4, 3, "3 processes"),
        (64, 2, 1, "needs 32 identities .* has 12"),
        (512, 0, 1, "batch_size=512 needs 512 items"),
        (8, 0, 3, "3 processes"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(items, batch_size, views, processes, message):
    with pytest.raises(InputError, match=message):
        make_sampler(items, sampling_config(batch_size, views), BatchShare.even(0, processes))


def test_batches_by_category_hold_few_categories_and_every_identity_once(items):
    labels, categories = items.training_identities(), items["category_id"]
    order = BatchOrder(8, 40, 0)

    def batches(grouping):
        sampler = IdentitySampler(items, order, 2, grouping)
        rows = np.array([sampler[i].row for i in range(len(sampler))]).reshape(-1, 8)
        return rows, sampler.classes // 4

    rows, epoch = batches("category")
    spread = [len(np.unique(categories[batch])) for batch in rows]
    assert np.mean(spread) < 0.8 * np.mean(
        [len(np.unique(categories[batch])) for batch in batches("random")[0]]
    )
    for start in range(0, len(rows) - epoch, epoch):
        counts = np.bincount(labels[rows[start : start + epoch]].ravel())
        assert set(counts.tolist()) <= {0, 2}  # both views, or left out
    assert not np.array_equal(rows[:epoch], rows[epoch : 2 * epoch])


def test_one_category_cannot_be_grouped(items):
    same = dataclasses.replace(
        items, attributes=items.attributes | {"category_id": np.ones(len(items), np.int64)}
    )
    with pytest.raises(InputError, match="needs several categories"):
        IdentitySampler(same, BatchOrder(B, 12, 0), K, "category")
    with pytest.raises(InputError, match="chooses identities"):
        DataConfig(batch_identities="category", views_per_identity=0)


def test_mined_batches_hold_neighbours_and_every_identity_once(items):
    """Identities lie on a line, two views each; a batch is a stretch of it."""
    labels = items.training_identities()
    classes, order = labels.max() + 1, BatchOrder(8, 40, 0)
    angles = np.maximum(labels, 0) / classes
    teacher = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 7.0  # of any norm

    def rows(grouping, order=order):
        sampler = IdentitySampler(items, order, 2, grouping, teacher)
        return np.array([sampler[i].row for i in range(len(sampler))]).reshape(-1, 8)

    mined, epoch = labels[rows("mined")], classes // 4
    spread, random_spread = (
        np.mean([batch.max() - batch.min() for batch in batches])
        for batches in (mined, labels[rows("random")])
    )
    assert spread < 0.7 * random_spread  # the last batch of an epoch has what is left
    counts = np.bincount(mined[:epoch].ravel(), minlength=classes)
    assert set(counts.tolist()) <= {0, 2} and counts.sum() == epoch * 8
    assert not np.array_equal(mined[:epoch], mined[epoch : 2 * epoch])
    np.testing.assert_array_equal(rows("mined"), rows("mined"))
    assert not np.array_equal(rows("mined"), rows("mined", BatchOrder(8, 40, 1)))
    with pytest.raises(InputError, match="'mined' looks for neighbours .* set data.teacher"):
        DataConfig(batch_identities="mined")
