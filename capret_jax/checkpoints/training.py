"""Saves and restores training checkpoints: train state, data position and config together."""

import contextlib
import pathlib
import warnings
from typing import Any, Protocol, TypeVar

import grain
import jax
import orbax.checkpoint.experimental.v1 as ocp
from orbax.checkpoint.metadata import StepMetadata, get_step_metadata

from capret_jax.buckets.urls import absolute
from capret_jax.checkpoints.damage import (
    DAMAGED,
    WHOLE,
    Damaged,
    check_sum,
    severity,
    worst,
)
from capret_jax.checkpoints.fingerprints import checksum
from capret_jax.distributed.batch_share import BatchShare
from capret_jax.distributed.mesh import first_process_first, path_name
from capret_jax.distributed.process_group import end_unless_done
from capret_jax.errors import InputError, first_line

_policies = ocp.training.preservation_policies
# `train.state.TrainState`, or any other tree of arrays.
State = TypeVar("State")
FOLDER = "checkpoints"
_KEEP = 2
# Seconds in which all processes have to have read a checkpoint that one could not read.
_COMPARE_SECONDS = 40
# Name in Orbax's metrics of the score by which the best checkpoint is kept.
_SCORE = "score"


class TrainedState(Protocol):
    """The part of a training state that is saved with a checksum of its own."""

    @property
    def model(self) -> dict: ...


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Returns True if a workdir has a folder of checkpoints, which may be empty."""
    return (workdir / FOLDER).is_dir()


class Checkpoints:
    """The checkpoints of one run, in `<workdir>/checkpoints`.

    A checkpoint appears under its name only when complete, so that a killed process leaves no
    incomplete one. It is saved with a checksum. A writer sets aside a checkpoint that is proven to
    be damaged, and goes on from the one before it; a reader changes nothing, and says so. The
    newest two are kept, and the one with the best score, if any have scores.
    """

    def __init__(self, workdir: pathlib.Path, read_only: bool = False):
        """
        Args:
            workdir: folder of the run.
            read_only: True for a reader: another process may be writing.
        """
        best = _policies.BestN(
            get_metric_fn=lambda metrics: metrics[_SCORE],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policy = _policies.AnyPreservationPolicy([_policies.LatestN(_KEEP), best])
        self._read_only = read_only
        self._saving: ocp.AsyncResponse[bool] | None = None

        def open_checkpoints(**settings) -> ocp.training.Checkpointer:
            return ocp.training.Checkpointer(
                absolute(workdir / FOLDER),
                preservation_policy=policy,
                cleanup_tmp_directories=not read_only,
                **settings,
            )

        try:
            self._checkpointer = open_checkpoints()
        except ValueError:  # the metadata of a checkpoint is damaged; it is read at its use
            self._checkpointer = open_checkpoints(lightweight_initialize=True)

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, None if there is none."""
        return max(self._steps(), default=None)

    def _steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, ascending."""
        try:
            return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]
        except ValueError:  # a damaged date
            folder = self._checkpointer.directory
            return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())

    def best_step(self) -> int | None:
        """Returns the step of the checkpoint with the highest score, the newest of equal ones.

        Returns:
            None if no checkpoint has a score.
        """
        scored = []
        with contextlib.suppress(ValueError):  # a damaged date
            for checkpoint in self._checkpointer.checkpoints:
                if checkpoint.metrics:
                    scored.append((checkpoint.metrics[_SCORE], checkpoint.step))
        return max(scored)[1] if scored else None

    def metadata(self) -> dict:
        """Reads the metadata of the newest checkpoint whose metadata can be read, see `save`.

        Raises:
            InputError: there is none.
        """
        for step in reversed(self._steps()):
            with contextlib.suppress(Exception):  # Orbax raises many types, even plain `Exception`
                if "config" in (metadata := self._metadata(step)):
                    return metadata
        raise InputError(
            f"the checkpoints in {self._checkpointer.directory} are damaged, or of another program."
        )

    def _metadata(self, step: int) -> dict:
        return self._read_metadata(step).custom_metadata or {}

    def _read_metadata(self, step: int) -> StepMetadata:
        # `Checkpointer.metadata` would describe every array as well, in 0.3 s instead of 0.3 ms.
        return get_step_metadata(self._checkpointer.directory / str(step))

    def save(
        self,
        step: int,
        state: TrainedState,
        iterator: grain.DatasetIterator,
        metadata: dict,
        score: float | None = None,
    ) -> None:
        """Copies the state off the devices, then writes in the background.

        Args:
            step: number of completed steps.
            state: train state to save.
            iterator: iterator of the training batches, whose position is saved.
            metadata: "config" of the run; "untrained", paths of the parameters of the model that
                were neither initialised from a checkpoint nor trained by a loss; "fresh", paths
                whose rate `optimizer.fresh_multiplier` scales; and "fingerprints" of the vocabulary
                and of the training items.
            score: of the model, for keeping the best; None where it was not evaluated.
        """
        self._saving = self._checkpointer.save_checkpointables_async(
            step,
            {"state": state, "data": iterator},
            metrics=None if score is None else {_SCORE: score},
            custom_metadata=metadata
            | {
                "processes": _feeding_processes(state),
                "checksums": {
                    "state": int(checksum(state)),
                    "model": int(checksum(state.model)),
                },
            },
            force=True,
        )

    def restore(
        self, abstract_state: State, iterator: grain.DatasetIterator | None = None
    ) -> State:
        """Restores the state of the newest checkpoint.

        A writer sets damaged checkpoints aside with a warning, and restores the one before.

        Args:
            abstract_state: tree of `jax.ShapeDtypeStruct` with the shardings to restore to.
            iterator: training iterator, which is moved to the position of the checkpoint. The
                number of processes may differ from that of the run that saved it.

        Raises:
            InputError: the checkpoint does not fit, or cannot be read; or it is damaged, and this
                is a reader or there is none before it.
        """
        while True:
            step = self._steps()[-1]
            try:
                return self._load(step, abstract_state, iterator)
            except Damaged as damage:
                left = len(self._steps()) - 1
                if self._read_only or not left:
                    raise self._damaged(step, damage, left) from damage
                self._set_aside(step, damage)

    def restore_best(self, abstract_state: State) -> State:
        """Restores the state of the best checkpoint, or of the newest where none has a score.

        Raises:
            InputError: it does not fit, is damaged, or cannot be read.
        """
        step = self.best_step()
        if step is None:
            return self.restore(abstract_state)
        try:
            return self._load(step, abstract_state, None)
        except Damaged as damage:
            raise self._damaged(step, damage, len(self._steps()) - 1) from damage

    def _load(
        self, step: int, abstract_state: State, iterator: grain.DatasetIterator | None
    ) -> State:
        """Loads the state of a step; all processes succeed, or all raise.

        Raises:
            Damaged: the content is not what was saved.
            InputError: it does not fit, or cannot be read for a reason outside of the checkpoint.
        """
        failure: Exception | None = None
        state = abstract_state
        try:
            state = self._load_here(step, abstract_state, iterator)
        except Exception as error:  # Orbax raises many types, even plain `Exception`
            failure = error
        # The others may wait for this process in a collective of Orbax, and never come to compare.
        limit: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if failure is not None:
            place = self._checkpointer.directory / str(step)
            line = f"{place} cannot be read: {first_line(failure)}"
            limit = end_unless_done(_COMPARE_SECONDS, line)
        with limit:
            verdict = worst(severity(failure))
        if verdict == WHOLE:
            return state
        folder = self._checkpointer.directory / str(step)
        reason = "another process could not read it" if failure is None else first_line(failure)
        if verdict == DAMAGED:
            raise Damaged(reason) from failure
        if isinstance(failure, InputError):
            raise failure
        raise InputError(f"{folder} cannot be read now: {reason}") from failure

    def _load_here(
        self, step: int, abstract_state: State, iterator: grain.DatasetIterator | None
    ) -> State:
        metadata = self._metadata(step)
        if "config" not in metadata:
            raise Damaged("its metadata is lost")
        checkpointables = {"state": abstract_state}
        same_processes = metadata.get("processes") in (None, _feeding_processes(abstract_state))
        if iterator is not None and same_processes:
            checkpointables["data"] = iterator
        state = self._load_state(step, checkpointables)
        check_sum(metadata, "state", state)
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

    def _damaged(self, step: int, damage: Exception, left: int) -> InputError:
        folder = self._checkpointer.directory / str(step)
        remedy = (
            "train with this --workdir to go on from the one before it"
            if left
            else "no other is left"
        )
        return InputError(f"{folder} is damaged ({damage}): {remedy}.")

    def _set_aside(self, step: int, damage: Exception) -> None:
        folder = self._checkpointer.directory / str(step)
        aside = folder.with_name(f"damaged_{step}")
        warnings.warn(
            f"{folder} is damaged ({damage}): set aside as {aside.name}, going on from the "
            "checkpoint before it",
            stacklevel=2,
        )
        first_process_first(lambda: folder.rename(aside) if folder.exists() else None)
        self._checkpointer.reload()

    def model_step(self) -> int:
        """Returns the step of the best checkpoint, or of the newest where none has a score."""
        best = self.best_step()
        return self._steps()[-1] if best is None else best

    def restore_model(self, abstract: dict) -> dict:
        """Restores only the parameters of the model, averaged if the checkpoint has averages.

        The checkpoint is the best one, or the newest where none has a score.

        Args:
            abstract: nested dict of `jax.ShapeDtypeStruct` with the shardings to restore to.

        Raises:
            InputError: the checkpoint cannot be read.
        """
        metadata = self.metadata()
        # The config of an older run may lack the key.
        averaged = metadata["config"]["optimizer"].get("ema_decay", 0)
        subtree = {"average": abstract} if averaged else {"params": {"model": abstract}}
        step = self.model_step()
        folder = self._checkpointer.directory / str(step)
        try:
            state = self._load_state(step, {"state": subtree})
            model = state["average"] if averaged else state["params"]["model"]
            check_sum(self._metadata(step), "model", model)
        except InputError:
            raise
        except Exception as error:  # Orbax raises many types, even plain `Exception`
            raise InputError(f"{folder} cannot be read: {first_line(error)}") from error
        return model

    def reload(self) -> None:
        """Looks for checkpoints that were written since this object was made."""
        self._checkpointer.reload()

    def wait(self) -> None:
        """Waits until everything is written."""
        if self._saving is not None:
            self._saving.result()
        self._saving = None

    def close(self) -> None:
        """Waits until everything is written, and releases the folder."""
        self._checkpointer.close()


def _feeding_processes(state: Any) -> int:
    """Returns the number of groups of processes that read different rows of each batch."""
    mesh = getattr(jax.tree.leaves(state)[0].sharding, "mesh", None)
    return BatchShare.of_mesh(mesh).count if mesh else jax.process_count()
