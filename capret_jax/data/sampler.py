"""Which items each training batch holds, as a pure function of the seed and the step."""

import functools
from typing import NamedTuple

import numpy as np

from capret_jax.data.batch import NO_IDENTITY
from capret_jax.data.items import ItemTable
from capret_jax.distributed.part import Part
from capret_jax.errors import InputError


class Draw(NamedTuple):
    """One example of the training stream.

    Attributes:
        row: of the item table.
        seed: for the example's augmentation, unlike any other draw's.
    """

    row: int
    seed: tuple[int, ...]


class _Sampler:
    """A random-access sequence of `Draw`s; which depends on nothing but the seed and the index.

    All processes agree on the order, and process i takes the i-th block of each batch.

    Attributes:
        identities: (n,) int64 class of each item as batches may tell it, or `NO_IDENTITY`.
        classes: C, identities seen by both sources.
        class_sizes: (C,) int64, items of each.
    """

    def __init__(self, items: ItemTable, batch_size: int, steps: int, seed: int, part: Part):
        """
        Args:
            items: the training split.
            batch_size: B, global.
            steps: batches in the whole run.
            seed: of the order.
            part: this process's.

        Raises:
            InputError: the processes do not divide the batch.
        """
        if batch_size % part.count:
            raise InputError(
                f"batch_size={batch_size} must be a multiple of the {part.count} processes."
            )
        self.identities = items.training_identities()
        self.classes = int(self.identities.max(initial=NO_IDENTITY)) + 1
        known = self.identities[self.identities != NO_IDENTITY]
        self.class_sizes = np.bincount(known, minlength=self.classes)
        self._batch_size = batch_size
        self._steps = steps
        self._seed = seed
        self._shard = part

    def __len__(self) -> int:
        return self._steps * (self._batch_size // self._shard.count)

    def __getitem__(self, index: int) -> Draw:
        local = self._batch_size // self._shard.count
        step, offset = divmod(index, local)
        slot = self._shard.index * local + offset
        return Draw(self._row(step, slot), (self._seed, 2, step, slot))

    def _row(self, step: int, slot: int) -> int:
        raise NotImplementedError

    @functools.lru_cache(maxsize=4)  # noqa: B019 - one sampler lives as long as the run
    def _order(self, epoch: int, count: int) -> np.ndarray:
        return np.random.default_rng([self._seed, 0, epoch]).permutation(count)


class IdentitySampler(_Sampler):
    """Batches of P identities x K views, half of the views from each source.

    An epoch visits the identities in a random order, P a batch, each once; those left over when
    P does not divide their number wait for the next epoch's order. Inside a batch, slot
    `view * P + p` holds a view of the p-th identity: neighbours differ in identity, so that the
    groups in which hard negatives are drawn hold many identities. Even views are shop pictures,
    odd ones are consumers' photographs.
    """

    def __init__(
        self,
        items: ItemTable,
        batch_size: int,
        views_per_identity: int,
        steps: int,
        seed: int,
        part: Part = Part(),
    ):
        """
        Args:
            items, batch_size, steps, seed, part: as above, B = P x K.
            views_per_identity: K, even.

        Raises:
            InputError: the numbers do not fit each other, or there are fewer than P identities.
        """
        super().__init__(items, batch_size, steps, seed, part)
        if views_per_identity < 2 or views_per_identity % 2:
            raise InputError(
                f"data.views_per_identity={views_per_identity} must be even, so that both sources "
                "have the same share."
            )
        if batch_size % views_per_identity:
            raise InputError(
                f"batch_size={batch_size} must be a multiple of data.views_per_identity="
                f"{views_per_identity}."
            )
        self._per_batch = batch_size // views_per_identity
        if self.classes < self._per_batch:
            raise InputError(
                f"batch_size={batch_size} / data.views_per_identity={views_per_identity} needs "
                f"{self._per_batch} identities seen by both sources, the training split has "
                f"{self.classes}."
            )
        self._rows = [
            [
                np.flatnonzero((self.identities == c) & (items.is_shop == shop))
                for shop in (True, False)
            ]
            for c in range(self.classes)
        ]

    def _row(self, step: int, slot: int) -> int:
        view, position = divmod(slot, self._per_batch)
        epoch, batch = divmod(step, self.classes // self._per_batch)
        order = self._order(epoch, self.classes)
        identity = int(order[batch * self._per_batch + position])
        rows = self._rows[identity][view % 2]
        order = np.random.default_rng([self._seed, 1, epoch, identity, view % 2]).permutation(rows)
        return int(order[view // 2 % len(rows)])


class ItemSampler(_Sampler):
    """The same items one by one, and nobody is told which are of one garment.

    An epoch visits them in a random order, each once; those left over when B does not divide their
    number wait for the next epoch's order.
    """

    def __init__(
        self, items: ItemTable, batch_size: int, steps: int, seed: int, part: Part = Part()
    ):
        """
        Args:
            items, batch_size, steps, seed, part: as above.

        Raises:
            InputError: the processes do not divide the batch, or there are fewer than B items.
        """
        super().__init__(items, batch_size, steps, seed, part)
        self._rows = np.flatnonzero(self.identities != NO_IDENTITY)
        if len(self._rows) < batch_size:
            raise InputError(
                f"batch_size={batch_size} is more than the {len(self._rows)} items that the "
                "training split has of identities seen by both sources."
            )
        self.identities = np.full_like(self.identities, NO_IDENTITY)

    def _row(self, step: int, slot: int) -> int:
        epoch, batch = divmod(step, len(self._rows) // self._batch_size)
        order = self._order(epoch, len(self._rows))
        return int(self._rows[order[batch * self._batch_size + slot]])


Sampler = IdentitySampler | ItemSampler


def make_sampler(
    items: ItemTable,
    batch_size: int,
    views_per_identity: int,
    steps: int,
    seed: int,
    part: Part = Part(),
) -> Sampler:
    """As `DataConfig.views_per_identity` wants it: 0 tells no identity.

    Raises:
        InputError: the numbers do not fit each other, or there are too few items.
    """
    if views_per_identity == 0:
        return ItemSampler(items, batch_size, steps, seed, part)
    return IdentitySampler(items, batch_size, views_per_identity, steps, seed, part)
