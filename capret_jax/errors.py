"""The exception for mistakes that a user can correct, and other errors in one line."""

import errno
import os
from collections.abc import Iterator

# Errors of reading values from a JSON document that is damaged, or that another program wrote.
MALFORMED_JSON = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class InputError(ValueError):
    """Error in a config, a file or a folder; the message names it and the remedy.

    `main` prints it as a single line and exits with code 2. Any other exception is a bug
    of this package, and is shown with its traceback.
    """


# What the operating system says, and what then helps.
_REMEDIES = {
    errno.ENOSPC: "free some space there, and run the same command again",
    errno.EDQUOT: "free some space there, and run the same command again",
    errno.EFBIG: "raise the limit of the size of files (ulimit -f)",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "give this user the right, or choose another folder",
    errno.EPERM: "give this user the right, or choose another folder",
}


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an exception, its cause, the cause of that, and so on."""
    seen: list[BaseException] = []
    while error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__ or error


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, at most 300 characters."""
    return (str(error) or type(error).__name__).splitlines()[0][:300]


def describe_system_error(error: BaseException) -> str | None:
    """Returns one line for a full disk or a missing right, None for other errors.

    Args:
        error: an exception; its causes are searched, too. Libraries in C++ raise other types, with
            the system's words in the message.
    """
    for cause in causes(error):
        for number, remedy in _REMEDIES.items():
            if isinstance(cause, OSError) and cause.errno == number:
                place = cause.filename or "a file"
                return f"{os.fspath(place)}: {os.strerror(number)}; {remedy}"
            if os.strerror(number) in str(cause):
                return f"{first_line(cause)}; {remedy}"
    return None
