"""The order of the photographs that train as a whole, beside the batches of items."""

import functools

import numpy as np

from capret_jax.data.items import ItemTable
from capret_jax.data.sampler import BatchOrder, Draw
from capret_jax.errors import InputError


class PhotographSampler:
    """A random-access sequence of photographs that depends on the seed and the index alone.

    An epoch visits all photographs with items in a random order, each once; when the size of a
    batch does not divide their number, the rest of them are left out until the next epoch. A draw
    names one of the photograph's items at random. So the position of both orders is the step.

    Attributes:
        order: size, number and seed of the batches; `batch_size` counts photographs.
    """

    def __init__(self, items: ItemTable, order: BatchOrder, key: str = "", stream: int = 0):
        """
        Args:
            items: items of the training split.
            order: size, number and seed of the batches.
            key: key of the config that holds the size, where a batch may not have a photograph
                twice; empty repeats them where there are fewer than a batch has.
            stream: number of this order among those of the run, which are independent.

        Raises:
            InputError: there are fewer photographs than a batch has, and they may not repeat.
        """
        self.order = order
        self._order_seed, self._row_seed, self._changes_seed = range(3 * stream + 4, 3 * stream + 7)
        self._starts = np.flatnonzero(np.diff(items.record, prepend=-1))
        self._ends = np.append(self._starts[1:], len(items))
        if key and len(self._starts) < order.batch_size:
            raise InputError(
                f"{key}={order.batch_size} is more than the "
                f"{len(self._starts)} photographs of the training split."
            )
        self._slots = order.share.rows(order.batch_size)[order.share.index]

    def __len__(self) -> int:
        return self.order.steps * self.order.local_batch_size

    def __getitem__(self, index: int) -> Draw:
        step, offset = divmod(index, self.order.local_batch_size)
        slot = int(self._slots[offset])
        count, size = len(self._starts), self.order.batch_size
        epoch, batch = divmod(step, max(count // size, 1))
        photograph = self._shuffled(epoch)[(batch * size + slot) % count]
        first, end = self._starts[photograph], self._ends[photograph]
        rng = np.random.default_rng([self.order.seed, self._row_seed, step, slot])
        return Draw(
            int(rng.integers(first, end)), (self.order.seed, self._changes_seed, step, slot)
        )

    @functools.lru_cache(maxsize=4)  # noqa: B019 - one sampler lives as long as the run
    def _shuffled(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.order.seed, self._order_seed, epoch])
        return rng.permutation(len(self._starts))
