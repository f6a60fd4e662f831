"""Handling of SIGTERM, by which clusters announce that they will stop a job."""

import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

from capret_jax.distributed.sigterm import notify_preemption

RESUME = "resume with the same command"


class PreemptionSignal:
    """A context manager in which SIGTERM is recorded instead of ending the process.

    With several processes, one that receives it tells JAX's preemption service, which chooses the
    step that all of them stop after.
    """

    def __init__(self, start: int):
        """
        Args:
            start: number of completed steps; the same on all processes.
        """
        self._start = start
        self._received = False

    def __enter__(self) -> "PreemptionSignal":
        # The service stops after the step that follows the largest one it was told of. Told of
        # none, it would choose step 1, which a resumed run never comes to.
        self.stops_after(self._start)
        self._before = signal.signal(signal.SIGTERM, self._record)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _record(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._received = True
        notify_preemption()

    def stops_after(self, step: int) -> bool:
        """Returns True if training is to stop after a step; the same on all processes.

        All processes have to call it after every step. It is no collective: after a signal the
        processes tell each other their steps within a second, and stop after the same one.
        """
        if jax.process_count() == 1:
            return self._received
        return multihost_utils.reached_preemption_sync_point(step)

    def received(self) -> bool:
        """Returns True if any process has received SIGTERM; a collective of all processes."""
        if jax.process_count() == 1:
            return self._received
        return bool(multihost_utils.process_allgather(np.array(self._received)).any())
