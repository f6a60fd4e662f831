"""The one exception for mistakes that a user can mend."""


class InputError(ValueError):
    """A config, a file or a folder that cannot be used; the message names it and the remedy.

    `main` prints it as a single line and exits with code 2. Anything else is our bug, and keeps
    its traceback.
    """
