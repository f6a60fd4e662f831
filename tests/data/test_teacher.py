"""Files of a teacher's embeddings: what is read, and what is refused by name."""

import numpy as np
import pytest

from capret_jax.data.teacher import open_teacher
from capret_jax.errors import InputError


def with_value(value):
    table = np.ones((4, 3), np.float32)
    table[2] = value
    return table


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_tables_of_floats_are_read(tmp_path, dtype):
    np.save(tmp_path / "table.npy", np.arange(1, 13, dtype=dtype).reshape(4, 3))
    np.testing.assert_array_equal(open_teacher(str(tmp_path / "table.npy"), 4)[1], [4, 5, 6])


@pytest.mark.parametrize(
    "table, message",
    [
        (np.ones((3, 3), np.float32), "has 3 rows, and the training split 4 items"),
        (np.ones(4, np.float32), "must hold a table of floats"),
        (np.ones((4, 3), np.int32), "must hold a table of floats"),
        (np.array([["a"]] * 4, object), "is no .npy file of numbers"),
        (with_value(np.nan), "row 2 is zero, infinite"),
        (with_value(np.inf), "row 2 is zero, infinite"),
        (with_value(0.0), "row 2 is zero, infinite"),
    ],
)
def test_other_tables_are_refused(tmp_path, table, message):
    np.save(tmp_path / "table.npy", table)
    with pytest.raises(InputError, match=message):
        open_teacher(str(tmp_path / "table.npy"), 4)


def test_other_paths_are_refused(tmp_path):
    with pytest.raises(InputError, match="is no .npy file"):
        open_teacher(str(tmp_path / "none.npy"), 4)
    (tmp_path / "empty.npy").touch()
    with pytest.raises(InputError, match="is no .npy file"):
        open_teacher(str(tmp_path / "empty.npy"), 4)
    (tmp_path / "text.npy").write_text("1 2 3")
    with pytest.raises(InputError, match="is no .npy file"):
        open_teacher(str(tmp_path / "text.npy"), 4)
    with pytest.raises(InputError, match="--config.evaluation.training_embeddings=True first"):
        open_teacher(str(tmp_path), 4)
