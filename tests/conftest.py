"""Shared fixtures: golden values, a tiny model, the mini dataset, and compiled functions."""

import dataclasses
import os
import pathlib
import tempfile

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Several tests build the same step anew, as a restarted run does, and programs that they start do,
# too: compile it once.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="capret_jax_compiled_")

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)

from capret_jax.checkpoints.conversion import from_reference
from capret_jax.checkpoints.state_dict import read_state_dict
from capret_jax.config import SIZES
from capret_jax.data.items import read_items
from capret_jax.data.pipeline import Split
from capret_jax.data.records import Records
from capret_jax.models.x2vlm import abstract_model, bind
from capret_jax.synthetic import builder as synthetic

# Compiles in seconds, with every part of the model in it.
SMALL_MODEL = dataclasses.replace(
    SIZES["tiny"],
    image_size=32,
    vision_depth=1,
    text_layers=1,
    fusion_layers=1,
    vocab_size=256,
    dropout=0.0,
    drop_path=0.0,
)
DATA = pathlib.Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """Values of the reference for 64 px; images as (B, H, W, 3)."""
    values = dict(np.load(DATA / "x2vlm_tiny_pretrain.npz"))
    values["image"] = values["image"].transpose(0, 2, 3, 1)
    return values


@pytest.fixture(scope="session")
def golden_state() -> dict[str, np.ndarray]:
    """The reference's state dict."""
    return read_state_dict(DATA / "x2vlm_tiny_pretrain.th")


@pytest.fixture(scope="session")
def golden_params(golden_state):
    """The same weights as our parameters."""
    return from_reference(golden_state).params


@pytest.fixture(scope="session")
def graphdef():
    """The tiny model's structure."""
    return abstract_model(SIZES["tiny"])[0]


@pytest.fixture(scope="session")
def golden_model(graphdef, golden_params):
    """The tiny model with the reference's weights."""
    return bind(graphdef, golden_params)


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory) -> pathlib.Path:
    """A folder with the synthetic dataset's mini variant in it."""
    path = tmp_path_factory.mktemp("prepared")
    synthetic.prepare(path, "mini")
    return path


@pytest.fixture(scope="session")
def splits(prepared_dir) -> dict[str, Split]:
    """Both splits of the mini dataset."""
    builder = synthetic.prepare(prepared_dir, "mini")
    records = {name: Records(builder, name) for name in ("train", "validation")}
    return {name: Split(r, read_items(r)) for name, r in records.items()}
