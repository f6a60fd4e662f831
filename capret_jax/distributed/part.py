"""A part of work that several processes or machines divide among themselves."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Part:
    """The i-th of n equal parts.

    Attributes:
        index: i, from 0.
        count: n.
    """

    index: int = 0
    count: int = 1
