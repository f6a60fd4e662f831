"""Checkpoints: train state, data position and config, saved and restored as one thing."""

import pathlib
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import grain
import jax
import orbax.checkpoint.experimental.v1 as ocp

from capret_jax.distributed.mesh import first_process_first
from capret_jax.errors import InputError

T = TypeVar("T")
# `train.state.TrainState`, or any tree of arrays with a shape of its own.
State = TypeVar("State")
FOLDER = "checkpoints"
_KEEP = 2


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Whether a run has left checkpoints here, or begun to."""
    return (workdir / FOLDER).is_dir()


class Checkpoints:
    """The checkpoints of one run, in `<workdir>/checkpoints`.

    A checkpoint appears under its name only when complete, so a killed process never leaves half
    of one in the way. One that cannot be read all the same, after a disk failed for instance, is
    set aside with a warning, and the one before it counts.
    """

    def __init__(self, workdir: pathlib.Path, read_only: bool = False):
        """
        Args:
            workdir: of the run.
            read_only: leave half-written checkpoints alone: another process may be writing them.
        """
        policy = ocp.training.preservation_policies.LatestN(_KEEP)
        self._read_only = read_only
        self._checkpointer = ocp.training.Checkpointer(
            (workdir / FOLDER).absolute(),
            preservation_policy=policy,
            cleanup_tmp_directories=not read_only,
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, None when there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def metadata(self) -> dict:
        """What was saved beside the newest checkpoint, see `save`.

        Raises:
            InputError: no checkpoint can be read.
        """
        return self._newest(lambda step: self._checkpointer.metadata(step).custom_metadata)

    def save(self, step: int, state: Any, iterator: grain.DatasetIterator, metadata: dict) -> None:
        """Copies the state off the devices, then writes in the background.

        Args:
            step: steps done.
            state: to save.
            iterator: of the training batches.
            metadata: "config", the run's; and "untrained", paths of the model's parameters that
                neither its start nor its losses gave a meaning.
        """
        self._checkpointer.save_checkpointables_async(
            step,
            {"state": state, "data": iterator},
            custom_metadata=metadata | {"processes": jax.process_count()},
            force=True,
        )

    def restore(
        self, abstract_state: State, iterator: grain.DatasetIterator | None = None
    ) -> State:
        """The newest checkpoint's state.

        Args:
            abstract_state: `jax.ShapeDtypeStruct`s with the shardings wanted.
            iterator: the training iterator; it is moved to the checkpoint's position, whatever the
                number of processes that saved it.

        Raises:
            InputError: no checkpoint can be read.
        """
        return self._newest(lambda step: self._load(step, abstract_state, iterator))

    def _load(
        self, step: int, abstract_state: State, iterator: grain.DatasetIterator | None
    ) -> State:
        wanted = {"state": abstract_state}
        saved_by = self._checkpointer.metadata(step).custom_metadata.get("processes")
        as_saved = saved_by in (None, jax.process_count())
        if iterator is not None and as_saved:
            wanted["data"] = iterator
        state = self._checkpointer.load_checkpointables(step, wanted)["state"]
        if iterator is not None and not as_saved:
            # Positions are saved by process, but batches are global and numbered by step: process
            # i of any number goes on with its part of the next one.
            grain.experimental.set_next_index(iterator, step)
        return state

    def _newest(self, read: Callable[[int], T]) -> T:
        """What `read` makes of the newest checkpoint that it can read."""
        while True:
            step = self._checkpointer.checkpoints[-1].step
            try:
                return read(step)
            except Exception as error:  # Orbax raises all kinds, `Exception` itself among them
                if self._read_only or len(self._checkpointer.checkpoints) < 2:
                    raise InputError(
                        f"{self._checkpointer.directory / str(step)} cannot be read, and no "
                        f"checkpoint before it is left: {error}"
                    ) from error
                self._set_aside(step, error)

    def _set_aside(self, step: int, error: Exception) -> None:
        folder = self._checkpointer.directory / str(step)
        aside = folder.with_name(f"unreadable_{step}")
        reason = str(error).splitlines()[0]
        warnings.warn(
            f"{folder} cannot be read ({reason}): set aside as {aside.name}, going on from the "
            "checkpoint before it",
            stacklevel=2,
        )
        first_process_first(lambda: folder.rename(aside) if folder.exists() else None)
        self._checkpointer.reload()

    def restore_model(self, abstract: dict) -> dict:
        """The newest checkpoint's model parameters alone, averaged ones if it has them.

        Raises:
            InputError: the checkpoint cannot be read.
        """
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        # A run saves the config that it had.
        averaged = self.metadata()["config"]["optimizer"].get("ema_decay", 0)
        wanted = {"average": abstract} if averaged else {"params": {"model": abstract}}
        try:
            with context:
                loaded = self._checkpointer.load_checkpointables(None, {"state": wanted})
        except Exception as error:  # Orbax raises all kinds, `Exception` itself among them
            raise InputError(f"{self._checkpointer.directory} cannot be read: {error}") from error
        state = loaded["state"]
        return state["average"] if averaged else state["params"]["model"]

    def close(self) -> None:
        """Waits until everything is written."""
        self._checkpointer.close()
