"""Vision tokens are those computed, however few of them fit in memory."""

import numpy as np
import pytest

from capret_jax.errors import InputError
from capret_jax.retrieval.vision_tokens import DiskTokens, MemoryTokens, VisionTokens

SIZE = 10
BYTES = 3 * 4 * 2 + 3  # an item's: (3, 4) float16 and (3,) bool


def compute(rows):
    states = np.arange(12).reshape(3, 4) + 100.0 * rows[:, None, None]
    return VisionTokens(states.astype(np.float16), (np.arange(3) <= rows[:, None] % 3))


def check(tokens, rows):
    for ours, theirs in zip(tokens(np.array(rows)), compute(np.array(rows)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_memory_keeps_the_latest_within_its_bounds():
    tokens = MemoryTokens(compute, 3 * BYTES)
    check(tokens, [0, 1, 0, 2])
    assert tokens.computed == 3
    check(tokens, [2, 1])
    assert tokens.computed == 3
    check(tokens, [3])  # 0 goes
    check(tokens, [1, 2, 3])
    assert tokens.computed == 4
    check(tokens, [0])
    assert tokens.computed == 5 and len(tokens._kept) == 3


def test_more_than_fits_is_still_right():
    tokens = MemoryTokens(compute, BYTES)
    check(tokens, list(range(SIZE)) * 2)
    assert tokens.computed == SIZE and len(tokens._kept) == 1


def test_a_file_keeps_all_from_one_run_to_the_next(tmp_path):
    tokens = DiskTokens(compute, SIZE, tmp_path)
    check(tokens, [4, 4, 2])
    again = DiskTokens(compute, SIZE, tmp_path)
    check(again, [2, 4, 9])
    assert (tokens.computed, again.computed) == (2, 1)
    with pytest.raises(InputError, match="tokens of another gallery"):
        DiskTokens(compute, SIZE + 1, tmp_path)


def test_rows_that_a_killed_run_did_not_finish_are_computed_again(tmp_path):
    def killed(rows):
        if 3 in rows:
            raise KeyboardInterrupt
        return compute(rows)

    tokens = DiskTokens(killed, SIZE, tmp_path)
    check(tokens, [1])
    with pytest.raises(KeyboardInterrupt):
        tokens(np.array([1, 3]))
    check(DiskTokens(compute, SIZE, tmp_path), [1, 3])
