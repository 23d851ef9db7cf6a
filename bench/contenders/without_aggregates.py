"""The archiver, but for the tables that reports read: what keeping those up to date costs."""

import sys
from collections.abc import Sequence

from sqlalchemy import Connection

from etl.__main__ import main as archiver
from etl.derived import refresh
from etl.derived.refresh import Noted


def note_nothing(connection: Connection, opened: Sequence[Noted], closed: Sequence[Noted]) -> None:
    """Stand for `refresh.note`: days stay as they are, and nothing is marked to be counted."""


def main() -> None:
    """Ingest the list."""
    sys.argv[1:] = ["ingest", "--from", sys.argv[1]]
    refresh.note = note_nothing
    archiver()


if __name__ == "__main__":
    main()
