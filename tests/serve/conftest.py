"""Fixtures: an index of the trained run's gallery, and pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.commands.in_process import call


@pytest.fixture(scope="session")
def index_dir(trained_dir, once):
    """An index of the run's own gallery, built by the command."""

    def fill(folder):
        flags = ["--shard_size=6", "--export=npy,parquet,faiss"]
        program = "capret_jax.commands.build_index"
        code, _, errors = call(program, f"--model={trained_dir}", f"--out={folder}", *flags)
        assert code == 0, errors

    return once("index", fill)


@pytest.fixture(scope="session")
def photo(splits) -> bytes:
    """A consumer's photograph, the bytes of a JPEG file."""
    split = splits["validation"]
    row = int(np.flatnonzero(~split.items.is_shop)[0])
    return split.records.image(int(split.items.record[row]))


def picture(size=(40, 30), mode="RGB", kind="PNG", colour=None, **options) -> bytes:
    """Encodes a picture of one colour."""
    colours = {"RGB": (200, 30, 30), "RGBA": (200, 30, 30, 0), "L": 90, "P": 3, "1": 1}
    buffer = io.BytesIO()
    Image.new(mode, size, colours[mode] if colour is None else colour).save(buffer, kind, **options)
    return buffer.getvalue()
