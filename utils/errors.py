"""Mistakes of the user, told in one sentence."""


class UserError(Exception):
    """Something the user can put right: names the file or option, what was expected, what was got, what to do.

    main_CL prints it without a traceback and exits with code 2.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled as Ctrl-C is, but for the exit code."""
