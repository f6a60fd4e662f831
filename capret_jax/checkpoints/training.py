"""Saves and restores training checkpoints: train state, data position and config together."""

import pathlib
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import grain
import jax
import orbax.checkpoint.experimental.v1 as ocp

from capret_jax.distributed.mesh import first_process_first, path_name
from capret_jax.errors import InputError

_policies = ocp.training.preservation_policies
T = TypeVar("T")
# `train.state.TrainState`, or any other tree of arrays.
State = TypeVar("State")
FOLDER = "checkpoints"
_KEEP = 2
# Name in Orbax's metrics of the score by which the best checkpoint is kept.
_SCORE = "score"


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Returns True if a workdir has a folder of checkpoints, which may be empty."""
    return (workdir / FOLDER).is_dir()


class Checkpoints:
    """The checkpoints of one run, in `<workdir>/checkpoints`.

    A checkpoint appears under its name only when complete, so that a killed process leaves no
    incomplete one. A checkpoint that cannot be read, for instance after a disk failure, is set
    aside with a warning, and the one before it is used. The newest two are kept, and the one with
    the best score, if any have scores.
    """

    def __init__(self, workdir: pathlib.Path, read_only: bool = False):
        """
        Args:
            workdir: folder of the run.
            read_only: True to leave incomplete checkpoints, which another process may be writing.
        """
        best = _policies.BestN(
            get_metric_fn=lambda metrics: metrics[_SCORE],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policy = _policies.AnyPreservationPolicy([_policies.LatestN(_KEEP), best])
        self._read_only = read_only
        self._checkpointer = ocp.training.Checkpointer(
            (workdir / FOLDER).absolute(),
            preservation_policy=policy,
            cleanup_tmp_directories=not read_only,
        )

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def best_step(self) -> int | None:
        """Returns the step of the checkpoint with the highest score, the newest of equal ones.

        Returns:
            None if no checkpoint has a score.
        """
        scored = [(c.metrics[_SCORE], c.step) for c in self._checkpointer.checkpoints if c.metrics]
        return max(scored)[1] if scored else None

    def metadata(self) -> dict:
        """Reads the metadata of the newest checkpoint, see `save`.

        Raises:
            InputError: no checkpoint can be read.
        """
        return self._read_newest(lambda step: self._checkpointer.metadata(step).custom_metadata)

    def save(
        self,
        step: int,
        state: Any,
        iterator: grain.DatasetIterator,
        metadata: dict,
        score: float | None = None,
    ) -> None:
        """Copies the state off the devices, then writes in the background.

        Args:
            step: number of completed steps.
            state: train state to save.
            iterator: iterator of the training batches, whose position is saved.
            metadata: "config" of the run, and "untrained": paths of the parameters of the model
                that were neither initialised from a checkpoint nor trained by a loss.
            score: of the model, for keeping the best; None where it was not evaluated.
        """
        self._checkpointer.save_checkpointables_async(
            step,
            {"state": state, "data": iterator},
            metrics=None if score is None else {_SCORE: score},
            custom_metadata=metadata | {"processes": jax.process_count()},
            force=True,
        )

    def restore(
        self, abstract_state: State, iterator: grain.DatasetIterator | None = None
    ) -> State:
        """Restores the state of the newest checkpoint.

        Args:
            abstract_state: tree of `jax.ShapeDtypeStruct` with the shardings to restore to.
            iterator: training iterator, which is moved to the position of the checkpoint. The
                number of processes may differ from that of the run that saved it.

        Raises:
            InputError: no checkpoint can be read.
        """
        return self._read_newest(lambda step: self._load(step, abstract_state, iterator))

    def restore_best(self, abstract_state: State) -> State:
        """Restores the state of the best checkpoint, or of the newest where none has a score.

        Raises:
            InputError: it cannot be read.
        """
        step = self.best_step()
        if step is None:
            return self.restore(abstract_state)
        try:
            return self._load(step, abstract_state, None)
        except InputError:
            raise
        except Exception as error:  # Orbax raises many types, even plain `Exception`
            raise InputError(
                f"{self._checkpointer.directory / str(step)}, the best checkpoint, cannot be read: "
                f"{error}"
            ) from error

    def _load(
        self, step: int, abstract_state: State, iterator: grain.DatasetIterator | None
    ) -> State:
        checkpointables = {"state": abstract_state}
        processes = self._checkpointer.metadata(step).custom_metadata.get("processes")
        same_processes = processes in (None, jax.process_count())
        if iterator is not None and same_processes:
            checkpointables["data"] = iterator
        state = self._load_state(step, checkpointables)
        if iterator is not None and not same_processes:
            # Positions are saved per process, but batches are global and numbered by step, so each
            # process continues with its part of the next batch.
            grain.experimental.set_next_index(iterator, step)
        return state

    def _load_state(self, step: int, checkpointables: dict[str, Any]) -> Any:
        """Loads checkpointables and returns the state.

        Every array asked for must be in the checkpoint, which may hold others. Fields that are None
        need not be there: a checkpoint of an older version lacks those that are newer than itself.

        Raises:
            InputError: an array is not in the checkpoint.
        """
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            state = self._checkpointer.load_checkpointables(step, checkpointables)["state"]
        # Orbax leaves the abstract array in the place of one that it does not find.
        missing = [
            path_name(path)
            for path, leaf in jax.tree.leaves_with_path(state)
            if isinstance(leaf, jax.ShapeDtypeStruct)
        ]
        if missing:
            raise InputError(
                f"{self._checkpointer.directory / str(step)} lacks {len(missing)} arrays of this "
                f"run, such as {missing[0]}: another version saved it; choose another --workdir."
            )
        return state

    def _read_newest(self, read: Callable[[int], T]) -> T:
        """Returns `read(step)` of the newest checkpoint that can be read."""
        while True:
            step = self._checkpointer.checkpoints[-1].step
            try:
                return read(step)
            except InputError:  # whole, but of another run: the one before is no better
                raise
            except Exception as error:  # Orbax raises many types, even plain `Exception`
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
        """Restores only the parameters of the model, averaged if the checkpoint has averages.

        The checkpoint is the best one, or the newest where none has a score.

        Args:
            abstract: nested dict of `jax.ShapeDtypeStruct` with the shardings to restore to.

        Raises:
            InputError: the checkpoint cannot be read.
        """
        # The config of an older run may lack the key.
        averaged = self.metadata()["config"]["optimizer"].get("ema_decay", 0)
        subtree = {"average": abstract} if averaged else {"params": {"model": abstract}}
        best = self.best_step()
        step = self._checkpointer.checkpoints[-1].step if best is None else best
        try:
            state = self._load_state(step, {"state": subtree})
        except InputError:
            raise
        except Exception as error:  # Orbax raises many types, even plain `Exception`
            raise InputError(f"{self._checkpointer.directory} cannot be read: {error}") from error
        return state["average"] if averaged else state["params"]["model"]

    def close(self) -> None:
        """Waits until everything is written."""
        self._checkpointer.close()
