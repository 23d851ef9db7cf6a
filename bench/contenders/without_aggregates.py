"""The archiver, but for the tables that reports read: what keeping those up to date costs."""

import sys
from collections.abc import Sequence

from sqlalchemy import Connection

from etl.__main__ import main as archiver
from etl.derived import refresh
from etl.derived.refresh import Contribution


def note_nothing(
    connection: Connection, opened: Sequence[Contribution], closed: Sequence[Contribution]
) -> None:
    """Replace `refresh.apply_contributions`: change no day, and mark nothing as dirty."""


def main() -> None:
    """Ingest the list."""
    sys.argv[1:] = ["ingest", "--from", sys.argv[1]]
    refresh.apply_contributions = note_nothing
    archiver()


if __name__ == "__main__":
    main()
