"""`export`: the archive in files for other programs."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options
from etl.errors import UsageError

if TYPE_CHECKING:
    from etl.cli.session import Session


@click.command(epilog="Example: result-archiver export --csv results")
@click.option("--sqlite", type=options.FILE, metavar="FILE", help="A copy of an archive in SQLite.")
@click.option(
    "--csv", type=options.FILE, metavar="FOLDER", help="A CSV file for each view and table."
)
@click.option("--jsonl", type=options.FILE, metavar="FOLDER", help="The same in JSON Lines.")
@options.raw
@options.as_json
@options.pass_session
def export(
    session: "Session",
    *,
    sqlite: Path | None,
    csv: Path | None,
    jsonl: Path | None,
    raw: bool,
    as_json: bool,
) -> int:
    """Write the archive to files for other programs, without tokens.

    All files are of one moment, and are written together or not at all.
    """
    if [sqlite, csv, jsonl].count(None) != 2:
        raise UsageError("export: give one of --sqlite FILE, --csv FOLDER or --jsonl FOLDER")
    if sqlite:
        size = _write_copy(session, sqlite)
        if as_json:
            display.as_json([{"file": str(sqlite), "bytes": size}])
        else:
            display.note(f"{sqlite}: a copy to publish, {size / 1e6:.1f} MB")
        return 0
    counts = _write_files(session, csv, jsonl, raw=raw)
    if as_json:
        display.as_json([{"file": str(file), "rows": rows} for file, rows in counts.items()])
    else:
        for file, rows in counts.items():
            display.say(f"{display.safe(file)}: {rows} rows")
    return 0


def _write_copy(session: "Session", target: Path) -> int:
    """Return the size of the copy in bytes."""
    from etl.export import publish

    with session.open_as_it_is() as archive:
        publish.copy_to(archive.engine, target)
    return target.stat().st_size


def _write_files(
    session: "Session", csv: Path | None, jsonl: Path | None, *, raw: bool
) -> dict[Path, int]:
    """Return how many rows each file has."""
    from etl.export import tables

    form, folder = ("csv", csv) if csv else ("jsonl", jsonl or Path())
    write = partial(tables.write_csv, raw=raw) if csv else tables.write_json_lines
    with session.open_to_read() as archive:
        try:
            return dict(tables.write(archive.engine, folder, form, write))
        except OSError as error:
            raise UsageError(f"--{form} {folder}: cannot be written: {error.strerror}") from None
