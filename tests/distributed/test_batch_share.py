"""Rows of a batch by mesh coordinates, for processes of every layout."""

import types

import jax
import numpy as np
import pytest

from capret_jax.config import MeshConfig
from capret_jax.distributed.batch_share import BatchShare, to_global
from capret_jax.distributed.mesh import make_mesh
from capret_jax.errors import InputError


def mesh_of(shape, processes, order=None):
    """Returns a stand-in for a mesh over several processes of as many devices each."""
    count = int(np.prod(shape))
    owner = np.arange(count) // (count // processes) if order is None else np.array(order)
    devices = np.array([types.SimpleNamespace(process_index=int(i)) for i in owner])
    sizes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    return types.SimpleNamespace(shape=sizes, devices=devices.reshape(shape))


def groups(mesh):
    return BatchShare.of_mesh(mesh, 0).groups


@pytest.mark.parametrize(
    "shape, processes, expected",
    [
        ((4, 1, 1), 1, [(0, 1, 2, 3)]),
        ((4, 1, 1), 2, [(0, 1), (2, 3)]),
        ((1, 4, 1), 4, [(0,), (1,), (2,), (3,)]),
        ((2, 1, 2), 2, [(0,), (1,)]),
        ((2, 1, 2), 4, [(0,), (1,)]),
        ((1, 1, 4), 4, [(0,)]),
        ((1, 2, 2), 4, [(0,), (1,)]),
        ((2, 2, 2), 2, [(0, 1), (2, 3)]),
    ],
)
def test_processes_that_differ_only_along_tensor_share_their_rows(shape, processes, expected):
    mesh = mesh_of(shape, processes)
    assert groups(mesh) == tuple(expected)
    shares = [BatchShare.of_mesh(mesh, process) for process in range(processes)]
    assert sum(share.is_first for share in shares) == len(expected)
    rows = shares[0].rows(8)
    assert sorted(rows.ravel()) == list(range(8))
    size = 8 // sum(map(len, expected))
    for share in shares:
        owned = [row for part in share.parts for row in range(part * size, (part + 1) * size)]
        assert rows[share.index].tolist() == owned


def test_rows_of_a_mesh_in_another_order_than_its_processes():
    """As on TPUs, where the order follows the links between devices."""
    share = BatchShare.of_mesh(mesh_of((4, 1, 1), 2, order=[1, 0, 0, 1]), 1)
    assert (share.groups, share.index) == (((1, 2), (0, 3)), 1)
    assert share.rows(8).tolist() == [[2, 3, 4, 5], [0, 1, 6, 7]]


def test_a_mesh_that_cuts_processes_unevenly_is_refused():
    with pytest.raises(InputError, match="a mesh of 3 x 1 x 2 devices cuts the 2 processes"):
        groups(mesh_of((3, 1, 2), 2))


@pytest.mark.parametrize("axes", [{}, {"fsdp": 2}, {"tensor": 2}, {"fsdp": 2, "tensor": 2}])
def test_global_arrays_hold_the_rows_in_order(axes):
    mesh = make_mesh(MeshConfig(**axes))
    rows = np.arange(16.0).reshape(8, 2)
    array = to_global(mesh, {"x": rows, "empty": np.zeros((8, 0), np.int32)})
    np.testing.assert_array_equal(array["x"], rows)
    assert array["empty"].shape == (8, 0)
    assert len(array["x"].sharding.device_set) == jax.device_count()
    with pytest.raises(ValueError, match="6 rows do not divide by"):
        to_global(mesh, np.zeros(6))
