"""Shared fixtures: golden values, a tiny model, the mini dataset, and one trained workdir."""

import dataclasses
import fcntl
import gc
import os
import pathlib
from collections.abc import Callable

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
ROOT = pathlib.Path(__file__).parent.parent
# Halves the time of compiling: tiny models gain nothing from LLVM's optimisations.
FAST_COMPILATION = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILATION}".strip()
# Compiled programs are kept between runs, and shared with the programs that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Tracing makes many objects that live long: looking for garbage among them less often saves a
# twentieth of the time.
gc.set_threshold(100_000, 50, 100)

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)

from capret_jax.checkpoints.conversion import from_reference
from capret_jax.checkpoints.state_dict import read_state_dict
from capret_jax.config import (
    SIZES,
    DataConfig,
    DetectionConfig,
    EvaluationConfig,
    ExperimentConfig,
    LocationBatchConfig,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    ReadConfig,
)
from capret_jax.data.items import read_items
from capret_jax.data.records import Records
from capret_jax.data.split import Split
from capret_jax.evaluation.retrieval import CurveEvaluator
from capret_jax.evaluation.suite import EvaluationSuite
from capret_jax.models.x2vlm import abstract_model, bind
from capret_jax.synthetic import builder as synthetic
from capret_jax.train.run import Run
from capret_jax.train.trainer import Trainer
from tests.small_model import WRITING_MODEL

DATA = pathlib.Path(__file__).parent / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts with files of slow tests, so that no process is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # stable


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
def once(
    tmp_path_factory, worker_id
) -> Callable[[str, Callable[[pathlib.Path], None]], pathlib.Path]:
    """Makes a folder once for all of pytest's processes; tests must not change what is in it."""
    base = tmp_path_factory.getbasetemp()
    root = base if worker_id == "master" else base.parent

    def make(name: str, fill: Callable[[pathlib.Path], None]) -> pathlib.Path:
        folder, done = root / name, root / f"{name}.done"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def prepared_dir(once) -> pathlib.Path:
    """A folder with the synthetic dataset's mini variant in it."""
    return once("prepared", lambda path: synthetic.prepare(path, "mini"))


@pytest.fixture(scope="session")
def splits(prepared_dir) -> dict[str, Split]:
    """Both splits of the mini dataset."""
    builder = synthetic.prepare(prepared_dir, "mini")
    records = {name: Records(builder, name) for name in ("train", "validation")}
    return {name: Split(r, read_items(r)) for name, r in records.items()}


@pytest.fixture(scope="session")
def tiny_config(prepared_dir) -> ExperimentConfig:
    """A short run that trains every part of a model, and evaluates everything."""
    return ExperimentConfig(
        batch_size=16,
        model=dataclasses.replace(WRITING_MODEL, decoder_layers=1),
        data=DataConfig(
            variant="mini",
            prepared_dir=str(prepared_dir),
            views_per_identity=2,
            max_tokens=24,
            location_batch=LocationBatchConfig(images=16),
            read=ReadConfig(threads=2, prefetch=2),
        ),
        loss=LossConfig(mlm=1.0, mlm_causal=True, vqa=1.0, locations=1.0, matching_group=2),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, ema_decay=0.9),
        loop=LoopConfig(steps=6, log_every=2, checkpoint_every=3, evaluate_every=6),
        # One sequence: after six steps several agree on nothing.
        evaluation=EvaluationConfig(
            detect=True, detection=DetectionConfig(samples=1), detectors=("phrases",), rerank=5
        ),
    )


@pytest.fixture(scope="session")
def trained_dir(tiny_config, once) -> pathlib.Path:
    """The workdir of `tiny_config`, trained and evaluated: for every test that needs a model."""

    def fill(path: pathlib.Path) -> None:
        run = Run(tiny_config, path)
        suite = EvaluationSuite(run)
        Trainer(run, CurveEvaluator(suite.context)).train()
        suite.run(run.state_to_evaluate())

    return once("trained", fill)
