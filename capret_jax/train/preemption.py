"""Handling of SIGTERM, by which clusters announce that they will stop a job."""

import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

RESUME = "resume with the same command"


class PreemptionSignal:
    """A context manager in which SIGTERM is recorded instead of ending the process."""

    def __init__(self):
        self._received = False

    def __enter__(self) -> "PreemptionSignal":
        self._before = signal.signal(signal.SIGTERM, self._record)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _record(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._received = True

    def agreed(self, may_communicate: bool) -> bool:
        """Returns True if any process has received SIGTERM; the same on all processes.

        Args:
            may_communicate: True where all processes may run a collective. With several processes
                the result is False elsewhere. It must be the same on all processes.
        """
        if jax.process_count() == 1:
            return self._received
        if not may_communicate:
            return False
        return bool(multihost_utils.process_allgather(np.array(self._received)).any())
