"""Damaged checkpoints: every file cut, emptied, removed or with a flipped bit; and other errors."""

import gc
import shutil
import warnings

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.checkpoints.damage import DAMAGED, UNREADABLE, WHOLE, Damaged, severity
from capret_jax.checkpoints.training import Checkpoints
from capret_jax.errors import InputError
from capret_jax.train.state import TrainState

# Orbax leaves the errors of its reading coroutines to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def _no_errors_for_later_modules():
    yield
    gc.collect()


PARAMS = {"model": {"kernel": jnp.arange(600.0).reshape(20, 30)}, "arcface": jnp.ones((4, 1, 30))}


def state_of(step):
    return TrainState(jnp.int32(step), jax.tree.map(lambda x: x + step, PARAMS), ())


def abstract():
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0)
    )


def batches():
    return iter(grain.MapDataset.range(9).to_iter_dataset())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with checkpoints of the steps 1 and 2."""
    folder = tmp_path_factory.mktemp("saved")
    checkpoints, iterator = Checkpoints(folder), batches()
    for step in (1, 2):
        next(iterator)
        metadata = {"config": {"optimizer": {"ema_decay": 0.0}}}
        checkpoints.save(step, state_of(step), iterator, metadata)
    checkpoints.close()
    return folder


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "workdir")
    return tmp_path / "workdir"


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_state(state, step):
    same = jax.tree.map(np.array_equal, state.params, state_of(step).params)
    return int(state.step) == step and all(jax.tree.leaves(same))


def damages(data: bytes, rng):
    """Yields damaged contents of a file; None removes it."""
    yield None
    yield b""
    yield data[: len(data) // 2]
    for _ in range(3):
        flipped = bytearray(data)
        flipped[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        yield bytes(flipped)


def test_no_damage_of_any_file_gives_another_state(workdir):
    """A reader refuses a damaged checkpoint and leaves it; a writer goes on from the one before."""
    warnings.simplefilter("ignore")
    folder, rng = workdir / "checkpoints" / "2", np.random.default_rng(0)
    harmless = refused = 0
    for path, data in content(folder).items():
        for damaged in damages(data, rng):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            before = content(workdir)
            try:
                with_reader = Checkpoints(workdir, read_only=True).restore(abstract())
                assert is_state(with_reader, 2), path
                harmless += 1
            except InputError as error:
                assert "2 is damaged" in str(error) and "\n" not in str(error)
                refused += 1
            assert content(workdir) == before
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    assert refused > 10 and harmless + refused == 6 * len(content(folder))


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "manifest.ocdbt"])
def test_a_writer_goes_on_from_the_checkpoint_before(workdir, name):
    for path in (workdir / "checkpoints" / "2").rglob(name):
        path.write_bytes(b"")
    writer, iterator = Checkpoints(workdir), batches()
    with pytest.warns(UserWarning, match="2 is damaged .* set aside as damaged_2"):
        state = writer.restore(abstract(), iterator)
    assert is_state(state, 1) and next(iterator) == 1
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"1", "damaged_2"}
    assert writer.metadata()["config"] == {"optimizer": {"ema_decay": 0.0}}
    writer.close()


@pytest.mark.parametrize(
    "error, verdict",
    [
        (None, WHOLE),
        (Damaged("changed"), DAMAGED),
        (ValueError("DATA_LOSS: CRC-32C checksum verification failed"), DAMAGED),
        (ValueError("NOT_FOUND: Error opening zarr"), DAMAGED),
        (InputError("does not fit"), UNREADABLE),
        (MemoryError(), UNREADABLE),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), UNREADABLE),
        (ValueError("UNAVAILABLE: the bucket does not answer"), UNREADABLE),
        (PermissionError("no"), UNREADABLE),
    ],
)
def test_only_damage_is_proof_of_damage(error, verdict):
    assert severity(error) == verdict
    if error is not None and verdict != WHOLE:
        outer = RuntimeError("failed to load")
        outer.__cause__ = error
        assert severity(outer) == verdict


@pytest.mark.parametrize("error", [MemoryError("no room"), OSError(5, "Input/output error")])
def test_a_hiccup_of_the_machine_renames_nothing(workdir, monkeypatch, error):
    def fail(*_):
        raise error

    writer = Checkpoints(workdir)
    monkeypatch.setattr(writer, "_load_state", fail)
    before = content(workdir)
    with pytest.raises(InputError, match="2 cannot be read now: "):
        writer.restore(abstract())
    assert content(workdir) == before
    writer.close()


def test_a_reader_leaves_a_checkpoint_that_is_being_written(workdir):
    unfinished = workdir / "checkpoints" / "3.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "part").write_bytes(b"half")
    assert is_state(Checkpoints(workdir, read_only=True).restore(abstract()), 2)
    assert (unfinished / "part").read_bytes() == b"half"
