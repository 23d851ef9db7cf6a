"""The archiver without its derived tables, to measure their cost."""

import sys
from collections.abc import Sequence

from sqlalchemy import Connection

from etl.__main__ import main as archiver
from etl.derived import refresh
from etl.derived.refresh import Contribution


def mark_nothing(
    connection: Connection, opened: Sequence[Contribution], closed: Sequence[Contribution]
) -> None:
    """Replace `refresh.apply_contributions`: update no days, and set no dirty marks."""


def main() -> None:
    """Ingest the list."""
    sys.argv[1:] = ["ingest", "--from", sys.argv[1]]
    refresh.apply_contributions = mark_nothing
    archiver()


if __name__ == "__main__":
    main()
