"""SIGTERM, with which clusters announce that a job will be stopped."""

import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

RESUME = "resume with the same command"


class PreemptionSignal:
    """A handler that, while open, records SIGTERM instead of ending the process."""

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
        """Tells whether to stop now; the same answer on every process.

        Args:
            may_communicate: several processes ask each other only when True, since it takes a
                collective; it must be True for all of them at once.
        """
        if jax.process_count() == 1:
            return self._received
        if not may_communicate:
            return False
        return bool(multihost_utils.process_allgather(np.array(self._received)).any())
