"""Rows of several processes, gathered bit for bit."""

import numpy as np
import pytest

from capret_jax.distributed.gather import gather_rows
from tests.multiprocess.group import run_group

# Arrays of process 0 and of process 1.
CASES = {
    # None of these but 0 and infinity is a float32.
    "float64": (np.array([0.1, -0.0, np.inf]), np.array([1e-300, np.nan, 1 + 2**-52, np.pi])),
    "rows of float64": (np.arange(6.0).reshape(1, 6) / 7, np.arange(18.0).reshape(3, 6) / 3),
    "float32": (np.float32([[0.1, 0.2]]), np.float32([[0.3, 0.4], [0.5, 0.6]])),
    "int64": (np.array([2**62, -1]), np.array([2**40 + 1])),
    "bool": (np.array([True, False, True]), np.array([True])),
    "empty on the first": (np.zeros((0, 5), np.float32), np.ones((2, 5), np.float32)),
    "empty on the second": (np.arange(3), np.zeros(0, np.int64)),
    "empty on both": (np.zeros((0, 6)), np.zeros((0, 6))),
}
PROGRAM = """
import sys
import jax
import numpy as np
from capret_jax.distributed.gather import gather_rows
from tests.distributed.test_gather import CASES

folder, address, count, index = sys.argv[1:]
jax.distributed.initialize(address, int(count), int(index))
rows = {name: gather_rows(arrays[int(index)]) for name, arrays in CASES.items()}
np.savez(f"{folder}/{index}.npz", **rows)
"""


@pytest.mark.parametrize("name", CASES)
def test_the_rows_of_one_process_stay_as_they_are(name):
    rows = CASES[name][0]
    assert gather_rows(rows) is rows


@pytest.mark.slow
def test_all_processes_get_the_rows_of_all_bit_for_bit(tmp_path):
    run_group(["-c", PROGRAM, str(tmp_path)], 2)
    paths = [tmp_path / f"{index}.npz" for index in range(2)]
    for path in paths:
        gathered = np.load(path)
        for name, parts in CASES.items():
            expected = np.concatenate(parts)
            assert gathered[name].dtype == expected.dtype, name
            assert gathered[name].shape == expected.shape, name
            assert gathered[name].tobytes() == expected.tobytes(), name
