"""Batches of P identities x K views, half of the views from each source, as a pure function."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from capret_jax.batch import NO_IDENTITY
from capret_jax.data.items import ItemTable
from capret_jax.errors import InputError


class Draw(NamedTuple):
    """One example of the training stream.

    Attributes:
        row: of the item table.
        seed: for the example's augmentation, unlike any other draw's.
    """

    row: int
    seed: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Shard:
    """This process's part of every global batch."""

    index: int = 0
    count: int = 1


class IdentitySampler:
    """A random-access sequence of `Draw`s; which depends on nothing but the seed and the index.

    An epoch visits the identities in a random order, P a batch, each once; those left over when
    P does not divide their number wait for the next epoch's order. Inside a batch, slot
    `view * P + p` holds a view of the p-th identity: neighbours differ in identity, so that the
    groups in which hard negatives are drawn hold many identities. Even views are shop pictures,
    odd ones are consumers' photographs. All processes agree on the order, and process i takes
    the i-th block of each batch.

    Attributes:
        classes: C, identities seen by both sources.
        class_sizes: (C,) int64, items of each.
    """

    def __init__(
        self,
        items: ItemTable,
        batch_size: int,
        views_per_identity: int,
        steps: int,
        seed: int,
        shard: Shard = Shard(),
    ):
        """
        Args:
            items: the training split.
            batch_size: B = P x K, global.
            views_per_identity: K, even.
            steps: batches in the whole run.
            seed: of the order.
            shard: this process's.

        Raises:
            InputError: the numbers do not fit each other, or there are fewer than P identities.
        """
        labels = items.training_identities()
        classes = int(labels.max(initial=NO_IDENTITY)) + 1
        if views_per_identity < 2 or views_per_identity % 2:
            raise InputError(
                f"data.views_per_identity={views_per_identity} must be even, so that both sources "
                "have the same share."
            )
        if batch_size % views_per_identity or batch_size % shard.count:
            raise InputError(
                f"batch_size={batch_size} must be a multiple of data.views_per_identity="
                f"{views_per_identity} and of the {shard.count} processes."
            )
        self._per_batch = batch_size // views_per_identity
        if classes < self._per_batch:
            raise InputError(
                f"batch_size={batch_size} / data.views_per_identity={views_per_identity} needs "
                f"{self._per_batch} identities seen by both sources, the training split has "
                f"{classes}."
            )
        self.classes = classes
        self.class_sizes = np.bincount(labels[labels != NO_IDENTITY], minlength=classes)
        self._batch_size = batch_size
        self._steps = steps
        self._seed = seed
        self._shard = shard
        self._rows = [
            [np.flatnonzero((labels == c) & (items.is_shop == shop)) for shop in (True, False)]
            for c in range(classes)
        ]

    def __len__(self) -> int:
        return self._steps * (self._batch_size // self._shard.count)

    def __getitem__(self, index: int) -> Draw:
        local = self._batch_size // self._shard.count
        step, offset = divmod(index, local)
        slot = self._shard.index * local + offset
        view, position = divmod(slot, self._per_batch)
        epoch, batch = divmod(step, self.classes // self._per_batch)
        identity = int(self._order(epoch)[batch * self._per_batch + position])
        rows = self._rows[identity][view % 2]
        order = np.random.default_rng([self._seed, 1, epoch, identity, view % 2]).permutation(rows)
        return Draw(int(order[view // 2 % len(rows)]), (self._seed, 2, step, slot))

    @functools.lru_cache(maxsize=4)  # noqa: B019 - one sampler lives as long as the run
    def _order(self, epoch):
        return np.random.default_rng([self._seed, 0, epoch]).permutation(self.classes)
