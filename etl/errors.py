"""The errors a user can meet, sorted by what has to be done next.

Each carries one line that says what is wrong, where, and what to do; `cli` prints it and
ends with the class's exit code. Only these reach a user: anything else is a bug of ours.
"""


class ArchiverError(Exception):
    """Something a user can mend. Its text is one line; `exit_code` is the process's."""

    exit_code = 1


class UsageError(ArchiverError):
    """The command, a file it names or a setting is wrong. Nothing was done."""

    exit_code = 2


class ConfigError(UsageError):
    """One or more settings are wrong; the text has a line for each."""


class KeyRefusedError(ArchiverError):
    """The API refused a key: every run of that source would fail alike."""

    exit_code = 3


class DatabaseError(ArchiverError):
    """The database cannot be reached or used, or its tables are behind this version.

    `is_passing` says that it may be back in a moment: the connection was lost, or a lock held.
    `is_of_values` says that it is well, and only would not take what it was given.
    """

    exit_code = 4

    def __init__(
        self, message: str, *, is_passing: bool = False, is_of_values: bool = False
    ) -> None:
        super().__init__(message)
        self.is_passing = is_passing
        self.is_of_values = is_of_values
