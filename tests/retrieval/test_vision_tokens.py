"""Vision tokens are those that were written, in memory and in a file."""

import errno
import os
import pathlib

import numpy as np
import pytest

from capret_jax.errors import InputError
from capret_jax.retrieval.vision_tokens import VisionTokens, VisionTokenStore, check_space

ITEMS, SHAPE = 10, (3, 4)
BYTES = ITEMS * 3 * 4 * 2


def make(rows):
    states = np.arange(12).reshape(3, 4) + 100.0 * rows[:, None, None]
    return VisionTokens(states.astype(np.float16), (np.arange(3) <= rows[:, None] % 3))


@pytest.mark.parametrize("max_bytes", [BYTES, BYTES - 1], ids=["memory", "file"])
def test_tokens_are_those_that_were_written(max_bytes, tmp_path):
    store = VisionTokenStore(ITEMS, SHAPE, max_bytes, tmp_path / "tokens")
    assert store.in_memory == (max_bytes == BYTES)
    for rows in (np.array([7, 0, 2]), np.array([1, 9])):
        store.write(rows, make(rows))
    rows = np.array([9, 0, 9, 2])
    for stored, expected in zip(store(rows), make(rows), strict=True):
        np.testing.assert_array_equal(stored, expected)
    # The file has no name: nothing is left behind.
    assert not (tmp_path / "tokens").exists() or not list((tmp_path / "tokens").iterdir())


def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(InputError, match="cache_dir='/proc/tokens' cannot hold 0.0 GB"):
        VisionTokenStore(ITEMS, SHAPE, 1, pathlib.Path("/proc/tokens"))


def test_a_disk_without_room_is_found_before_training(tmp_path):
    check_space(10**9, (600, 1000), 2 * 10**9 * 600 * 1000)
    with pytest.raises(InputError, match=rf"needs 1200000.0 GB for vision tokens, and {tmp_path}"):
        check_space(10**9, (600, 1000), 2**30, tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_a_full_disk_is_found_before_any_token_is_encoded(tmp_path, monkeypatch):
    def no_space(descriptor, offset, size):
        assert (offset, size) == (0, 2 * 4 * 3 * 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(InputError, match="No space left on device"):
        VisionTokenStore(4, (3, 2), max_bytes=0, folder=tmp_path)
    assert not list(tmp_path.iterdir())
