"""The exception for mistakes that a user can correct."""


class InputError(ValueError):
    """Error in a config, a file or a folder; the message names it and the remedy.

    `main` prints it as a single line and exits with code 2. Any other exception is a bug
    of this package, and is shown with its traceback.
    """
