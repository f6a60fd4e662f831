"""Values of JSON files of other programs: what is meant is read, anything else is refused."""

import math
from typing import Any

# Whole numbers up to here are exact as floats, too.
_LARGEST = 2**53
# Pixels of a side.
_LARGEST_PICTURE = 10**6


def as_int(value: Any) -> int:
    """Returns a whole number, which may be text such as "000123" or a float such as 2.0.

    Raises:
        ValueError: it is no whole number; true and false are none.
    """
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError(f"{_shown(value)} is no whole number")
    if abs(value) > _LARGEST:
        raise ValueError(f"{_shown(value)} is too large")
    return int(value)


def as_number(value: Any) -> float:
    """Returns a finite number, which may be text such as "0.5".

    Raises:
        ValueError: it is no number, or not finite; true and false are none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{_shown(value)} is no number")
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{_shown(value)} is no number") from error
    if not math.isfinite(number):
        raise ValueError(f"{_shown(value)} is not finite")
    return number


def as_numbers(value: Any, count: int) -> list[float]:
    """Returns a list of finite numbers.

    Raises:
        ValueError: it is no list of `count` finite numbers.
    """
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(f"{_shown(value)} is no list of {count} numbers")
    return [as_number(number) for number in value]


def as_box(value: Any) -> list[float]:
    """Returns the four numbers of a box in pixels.

    Raises:
        ValueError: it is no list of four numbers, or one is larger than any picture.
    """
    box = as_numbers(value, 4)
    if max(map(abs, box)) > _LARGEST_PICTURE:
        raise ValueError(f"{_shown(value)} is larger than any picture")
    return box


def _shown(value: Any) -> str:
    return ascii(value)[:80]
