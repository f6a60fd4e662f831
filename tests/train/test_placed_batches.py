"""Batches on the devices: read ahead, with the position of the last one taken."""

import jax
import numpy as np
import pytest

from capret_jax.config import MeshConfig
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError
from capret_jax.train.placed_batches import PlacedBatches


class Counted:
    """An iterator over batches of one number, up to `last`."""

    def __init__(self, last):
        self.place, self.last = 0, last

    def __next__(self):
        if self.place == self.last:
            raise InputError("image 4 does not decode")
        self.place += 1
        return {"number": np.full(8, self.place)}

    def get_state(self):
        return {"next_index": self.place}

    def set_state(self, state):
        self.place = state["next_index"]


@pytest.fixture
def source():
    return Counted(4)


@pytest.fixture
def placed(source):
    return PlacedBatches(source, make_mesh(MeshConfig(), jax.devices()[:4]))


def test_the_next_batches_wait_on_the_devices(source, placed):
    first = next(placed)["number"]
    assert len(first.sharding.device_set) == 4 and int(first[0]) == 1 and source.place == 1
    placed.fill()
    assert source.place == 3
    assert [int(next(placed)["number"][0]) for _ in range(3)] == [2, 3, 4]


def test_the_position_is_that_of_the_last_batch_taken(placed):
    assert placed.get_state() == {"next_index": 0}
    next(placed)
    placed.fill()
    assert placed.get_state() == {"next_index": 1}
    next(placed)
    assert placed.get_state() == {"next_index": 2}
    placed.set_state({"next_index": 1})
    assert int(next(placed)["number"][0]) == 2


def test_an_error_is_raised_at_its_own_batch(placed):
    for number in range(1, 5):
        assert int(next(placed)["number"][0]) == number
        placed.fill()
    with pytest.raises(InputError, match="image 4"):
        next(placed)
