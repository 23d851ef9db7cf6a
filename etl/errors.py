"""The errors a user can meet, sorted by the next step.

Each has a problem (with its place), a remedy and a reason code; `cli` prints the text, one line,
and ends with the class's exit code. Only these reach a user: anything else is a bug of ours.
"""

import errno
import os
from contextlib import ExitStack
from enum import StrEnum

NO_FILES_LEFT = {errno.EMFILE, errno.ENFILE}
FILES_AT_ONCE = 4
"""A connection opens this number of files: certificates, names, a socket."""


class ArchiverError(Exception):
    """A failure that a user can mend. Its text is "problem; remedy"; code reads the fields."""

    exit_code = 1
    reason: str = "failed"

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class UsageError(ArchiverError):
    """The command, a file it names or a setting is wrong. Nothing was done."""

    exit_code = 2
    reason = "bad_usage"


class ConfigError(UsageError):
    """One or more settings are wrong; the text has a line for each."""

    reason = "bad_setting"


class KeyRefusedError(ArchiverError):
    """The API refused a key: every run of that source would fail alike."""

    exit_code = 3
    reason = "key_refused"


class FetchingLostError(ArchiverError):
    """The child process that fetches ended by itself, or could not be started."""


class OutOfFilesError(ArchiverError):
    """This process, or the machine, can open no more files or connections."""

    reason = "out_of_files"

    def __init__(self) -> None:
        super().__init__(
            "no more files can be opened (too many open files)",
            "raise the limit (`ulimit -n`, LimitNOFILE= of systemd) or lower api.connections",
        )


def is_out_of_files(error: BaseException) -> bool:
    """Tell whether `error` comes from the limit of open files, however it was explained."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OutOfFilesError) or getattr(cause, "errno", None) in NO_FILES_LEFT:
            return True
        cause = cause.__cause__ or cause.__context__
    # A name that is not resolved and a database that is not opened do not say why.
    with ExitStack() as opened:
        try:
            for _ in range(FILES_AT_ONCE):
                opened.callback(os.close, os.dup(2))
        except OSError as failure:
            return failure.errno in NO_FILES_LEFT
    return False


class Fault(StrEnum):
    """Reason codes of a database that cannot be used."""

    UNAVAILABLE = "database_unavailable"
    """No connection, a lost one, or a lock held by another process: transient errors."""
    OUT_OF_RESOURCES = "database_out_of_resources"
    """The server lacks disk, memory or connections: transient errors too."""
    NO_RIGHTS = "database_no_rights"
    ENCODING = "database_encoding"
    """The server stores texts in another encoding than UTF-8."""
    REFUSED_STATEMENT = "database_refused_statement"
    """The statement fails whatever its values are: a bug of ours, or a pooler's doing."""
    REFUSED_VALUES = "database_refused_values"
    """The database works, and refuses the values of one statement."""
    FOREIGN = "database_foreign"
    """Another program's tables, or another archive's views, have our names."""
    NO_ARCHIVE = "no_archive"
    BEHIND = "database_behind"
    AHEAD = "database_ahead"
    UNUSABLE = "database_unusable"


class DatabaseError(ArchiverError):
    """The database cannot be reached or used, or its tables are of another revision."""

    exit_code = 4

    def __init__(self, problem: str, remedy: str = "", reason: Fault = Fault.UNUSABLE) -> None:
        super().__init__(problem, remedy)
        self.reason = reason

    @property
    def is_transient(self) -> bool:
        """Whether the same statement can succeed in a moment."""
        return self.reason in {Fault.UNAVAILABLE, Fault.OUT_OF_RESOURCES}

    @property
    def is_of_values(self) -> bool:
        """Whether only the values of the statement are at fault."""
        return self.reason == Fault.REFUSED_VALUES
