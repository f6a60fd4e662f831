"""Fixtures: a small model, trained for a few steps, and an index of its gallery."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from capret_jax.config import DataConfig, ExperimentConfig, LoopConfig, LossConfig, OptimizerConfig
from capret_jax.train.run import Run
from capret_jax.train.trainer import Trainer
from tests.conftest import SMALL_MODEL


@pytest.fixture(scope="session")
def model_dir(prepared_dir, tmp_path_factory):
    """A workdir of a model whose heads are all trained for two steps."""
    folder = tmp_path_factory.mktemp("served")
    config = ExperimentConfig(
        batch_size=16,
        model=SMALL_MODEL,
        data=DataConfig(variant="mini", prepared_dir=str(prepared_dir), views_per_identity=2),
        loss=LossConfig(mlm=0.1, matching_group=2),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
        loop=LoopConfig(steps=2, checkpoint_every=2),
    )
    Trainer(Run(config, folder)).train()
    return folder


@pytest.fixture(scope="session")
def index_dir(model_dir):
    """An index of the run's own gallery, built by the command with two processes."""
    command = [sys.executable, "tools/build_index.py", f"--model={model_dir}"]
    out = model_dir / "index"
    flags = [f"--out={out}", "--processes=2", "--shard_size=6", "--export=npy,parquet,faiss"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


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
