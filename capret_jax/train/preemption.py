"""SIGTERM, with which clusters announce that a job will be stopped."""

import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

RESUME = "resume with the same command"


class PreemptionSignal:
    """While it is open, SIGTERM is noted instead of ending the process."""

    def __init__(self):
        self._noted = False

    def __enter__(self) -> "PreemptionSignal":
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._noted = True

    def agreed(self, may_ask: bool) -> bool:
        """Whether to stop now; the same answer on every process.

        Args:
            may_ask: several processes ask each other only when True, since it takes a collective;
                it must be True for all of them at once.
        """
        if jax.process_count() == 1:
            return self._noted
        return may_ask and bool(multihost_utils.process_allgather(np.array(self._noted)).any())
