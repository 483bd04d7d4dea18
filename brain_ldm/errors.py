"""The one exception that means: the user can mend this."""


class InputError(Exception):
    """A mistake in what the user gave, told in one line that names the culprit and the mend.

    Commands print the message without a traceback and exit with code 2.
    """
