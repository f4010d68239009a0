"""Errors that the user can correct, and the signal to stop."""


class UserError(Exception):
    """An error of the user, in one sentence: file or option, what was expected, what was got, what to do.

    main_CL prints the sentence without a traceback and exits with code 2.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled like Ctrl-C, with a different exit code."""
