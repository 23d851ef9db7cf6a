"""The archiver without its derived tables, to measure their cost."""

import sys
from collections.abc import Collection, Sequence

from sqlalchemy import Connection

from etl.__main__ import main as archiver
from etl.archive import store
from etl.config.settings import Rules
from etl.derived.first_runs import FirstRun
from etl.derived.marks import DirtyMark


def mark_nothing(connection: Connection, marks: Collection[DirtyMark]) -> None:
    """Replace `marks.add_marks`: no aggregate is refreshed."""


def insert_nothing(connection: Connection, first_runs: Sequence[FirstRun], rules: Rules) -> None:
    """Replace `first_runs.insert_aggregates`."""


def main() -> None:
    """Ingest the list."""
    sys.argv[1:] = ["ingest", "--from", sys.argv[1]]
    vars(store)["add_marks"] = mark_nothing
    vars(store)["insert_aggregates"] = insert_nothing
    archiver()


if __name__ == "__main__":
    main()
