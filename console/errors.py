"""Errors with a message for the user. All other errors are faults of the program. Imports nothing."""


class UserError(ValueError):
    """The arguments, or what they name, do not fit; the message says what is wrong and what to do.

    A command prints only the message and ends with `ExitCode.REFUSED`. Any other ValueError, a library's for example,
    is a fault of this program and keeps its traceback.
    """


class UnusableFile(UserError, OSError):
    """A file, or the memory of a process, that cannot be used as the program needs it."""


class NotFinite(UserError, FloatingPointError):
    """Training computes numbers that are not finite."""
