"""A part of a task that is divided among processes or machines."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Part:
    """The i-th of n equal parts of a task.

    Attributes:
        index: i, from 0.
        count: n.
    """

    index: int = 0
    count: int = 1
