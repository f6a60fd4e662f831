"""Batches that are put on the devices ahead of the steps that use them."""

import collections
from typing import Any

import grain
from jax.sharding import Mesh

from capret_jax.data.batch import Batch
from capret_jax.distributed.batch_share import to_global

# Batches on the devices beside the one of the current step.
_AHEAD = 2


class PlacedBatches(grain.DatasetIterator[Batch]):
    """Global batches of an iterator of local ones, with the position of the last one taken.

    JAX copies to the devices in the background: `fill`, called after a step was dispatched, has the
    next batches copied while it runs. An error of reading ahead is raised where its batch is due,
    so that the steps before it can be saved.
    """

    def __init__(self, iterator: grain.DatasetIterator[Batch], mesh: Mesh):
        """
        Args:
            iterator: this process's part of the batches.
            mesh: mesh to place them on, with `to_global`.
        """
        super().__init__()
        self._iterator, self._mesh = iterator, mesh
        self._placed: collections.deque[tuple[Batch, dict[str, Any]]] = collections.deque()
        self._state = iterator.get_state()
        self._end: Exception | None = None

    def fill(self) -> None:
        """Puts batches on the devices until enough of them wait there."""
        self._fill(_AHEAD)

    def _fill(self, count: int) -> None:
        while self._end is None and len(self._placed) < count:
            try:
                batch = to_global(self._mesh, next(self._iterator))
            except Exception as error:  # also the end of the batches
                self._end = error
            else:
                self._placed.append((batch, self._iterator.get_state()))

    def __next__(self) -> Batch:
        self._fill(1)
        if not self._placed:
            assert self._end is not None
            raise self._end
        batch, self._state = self._placed.popleft()
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch that was taken."""
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position from `get_state`."""
        self._iterator.set_state(state)
        self._placed.clear()
        self._state, self._end = state, None
