"""Make a finished copy of an archive in SQLite, for readers that may not write beside the archive.

The archive itself is in WAL mode: a reader has to write into its folder. The copy is one file that
nobody changes any more, without tokens and leases.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine

from etl.db.database import require_archive, shown_url
from etl.errors import DatabaseError, UsageError
from etl.export.own_files import PUBLISHED_COPY, is_published_copy, mark_database
from etl.files import ForeignFileError, is_stream, write_whole

EMPTIED = ("read_token", "lease_owner", "lease_until")
"""Columns of `tracked_runs`: an encrypted secret, and which process of which host is at work."""


def copy_to(engine: Engine, target: Path) -> None:
    """Write the copy to `target`, all of it at once; a file that is there is replaced.

    Raises:
        UsageError: the archive is not in SQLite, or `target` exists and is not an earlier copy.
        DatabaseError: the archive is missing, or the copy cannot be written.
    """
    if engine.dialect.name != "sqlite":
        raise UsageError(
            f"{shown_url(engine)}: only an archive in SQLite can be copied to a file; here, let"
            " readers in: `result-archiver db grant-reader ROLE`"
        )
    require_archive(engine)
    source = Path(engine.url.database or "")
    try:
        _require_file(source, target)
        with write_whole({target: is_published_copy}) as [draft]:
            _copy(source, draft)
            _empty_secrets(draft)
            _collect_statistics(draft)
            mark_database(draft, PUBLISHED_COPY)
    except ForeignFileError as error:
        raise UsageError(str(error)) from None
    except (OSError, sqlite3.Error) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise DatabaseError(f"{target}: cannot be written: {reason}") from None


def _require_file(source: Path, target: Path) -> None:
    if target.is_dir():
        raise UsageError(f"{target}: is a folder; name a file in it")
    if is_stream(target):
        raise UsageError(f"{target}: is a pipe or device; a database needs a regular file")
    if target.exists() and target.samefile(source):
        raise UsageError(f"{target}: is the archive itself; name another file")


def _copy(source: Path, draft: Path) -> None:
    with closing(sqlite3.connect(source, isolation_level=None)) as connection:
        connection.execute("VACUUM INTO ?", (str(draft.absolute()),))


def _empty_secrets(copy: Path) -> None:
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA secure_delete = ON")  # else old values stay in unused space
        assignments = ", ".join(f"{column} = NULL" for column in EMPTIED)
        conditions = " OR ".join(f"{column} IS NOT NULL" for column in EMPTIED)
        connection.execute(f"UPDATE tracked_runs SET {assignments} WHERE {conditions}")  # noqa: S608  our names


def _collect_statistics(copy: Path) -> None:
    """Let SQLite count the values of each index: readers' queries then begin with the best one."""
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("ANALYZE")
