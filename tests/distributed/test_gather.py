"""Rows of several processes, gathered bit for bit."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from capret_jax.distributed.gather import gather_rows

ROOT = pathlib.Path(__file__).parents[2]
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

address, index, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, 2, index)
np.savez(path, **{name: gather_rows(parts[index]) for name, parts in CASES.items()})
"""


@pytest.mark.parametrize("name", CASES)
def test_the_rows_of_one_process_stay_as_they_are(name):
    rows = CASES[name][0]
    assert gather_rows(rows) is rows


@pytest.mark.slow
def test_all_processes_get_the_rows_of_all_bit_for_bit(tmp_path):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    paths = [tmp_path / f"{index}.npz" for index in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(index), str(path)],
            cwd=ROOT,
            env={**os.environ, "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, path in enumerate(paths)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for path in paths:
        gathered = np.load(path)
        for name, parts in CASES.items():
            expected = np.concatenate(parts)
            assert gathered[name].dtype == expected.dtype, name
            assert gathered[name].shape == expected.shape, name
            assert gathered[name].tobytes() == expected.tobytes(), name
