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
    from etl.db.opening import Archive
    from etl.export.tables import FileForm


@click.command(epilog="Example: result-archiver export --csv results")
@click.option("--sqlite", type=options.FILE, metavar="FILE", help="A copy of an archive in SQLite.")
@click.option(
    "--csv", type=options.FILE, metavar="FOLDER", help="A CSV file for each view and table."
)
@click.option("--jsonl", type=options.FILE, metavar="FOLDER", help="The same in JSON Lines.")
@click.option(
    "--parquet",
    type=options.FILE,
    metavar="FOLDER",
    help="The same in Parquet, with types and descriptions; needs the extra `lake`.",
)
@options.raw
@options.as_json
@options.pass_session
def export(
    session: "Session",
    *,
    sqlite: Path | None,
    csv: Path | None,
    jsonl: Path | None,
    parquet: Path | None,
    raw: bool,
    as_json: bool,
) -> int:
    """Write the archive to files for other programs, without tokens.

    All files are of one moment, and are written together or not at all.
    """
    folders = {"csv": csv, "jsonl": jsonl, "parquet": parquet}
    given = [(form, folder) for form, folder in folders.items() if folder]
    if len(given) + (sqlite is not None) != 1:
        raise UsageError(
            "export: give one of --sqlite FILE, --csv FOLDER, --jsonl FOLDER or --parquet FOLDER"
        )
    if sqlite:
        size = _write_copy(session, sqlite)
        if as_json:
            display.as_json([{"file": str(sqlite), "bytes": size}])
        else:
            display.note(f"{sqlite}: a copy to publish, {size / 1e6:.1f} MB")
        return 0
    [(form, folder)] = given
    counts = _write_files(session, form, folder, raw=raw)
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
        _note_unrefreshed(archive)
    return target.stat().st_size


def _write_files(session: "Session", form: str, folder: Path, *, raw: bool) -> dict[Path, int]:
    """Return how many rows each file has."""
    from etl.export import tables

    with session.open_to_read() as archive:
        _note_unrefreshed(archive)
        try:
            return dict(tables.write(archive.engine, folder, _find_form(form, archive, raw=raw)))
        except OSError as error:
            raise UsageError(f"--{form} {folder}: cannot be written: {error.strerror}") from None


def _note_unrefreshed(archive: "Archive") -> None:
    """Say how many revisions the views lack; an archive of an older version cannot tell."""
    from sqlalchemy import inspect

    from etl.db.schema import dirty_marks
    from etl.derived.marks import count_marked

    with archive.reading() as connection:
        can_tell = inspect(connection).has_table(dirty_marks.name)
        if can_tell and (marked := count_marked(connection)):
            display.note(
                f"the views lack {marked} revisions of runs, which a pass adds before it ends;"
                " `result-archiver refresh` does now"
            )


def _find_form(form: str, archive: "Archive", *, raw: bool) -> "FileForm":
    """Return how files of a form are written. Raises UsageError without the extra for Parquet."""
    from etl.export.tables import FileForm, write_csv, write_json_lines

    if form == "csv":
        return FileForm(form, partial(write_csv, raw=raw))
    if form == "jsonl":
        return FileForm(form, write_json_lines)
    try:
        from etl.export import parquet
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise UsageError(
            "--parquet: pyarrow is not installed", "pip install 'result-archiver[lake]'"
        ) from None
    with archive.reading() as connection:
        descriptions = parquet.read_descriptions(connection)
    write = partial(parquet.write_parquet, descriptions)
    return FileForm(form, write, parquet.is_parquet_of, parquet.ROWS_IN_A_GROUP)
