"""`export`: the archive in a form to hand on."""

from pathlib import Path

from etl import display, publish
from etl.commands.session import open_session


def to_sqlite(path: Path | None, target: Path) -> int:
    """Write a finished copy of an archive in SQLite. Raises UsageError."""
    publish.copy_to(open_session(path).engine, target)
    display.note(f"{target}: a copy to publish, {target.stat().st_size / 1e6:.1f} MB")
    return 0
