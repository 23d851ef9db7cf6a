"""`export`: the archive in a form to hand on."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from etl import display
from etl.cli.session import open_session
from etl.errors import UsageError
from etl.export import publish, tables

FORMS = "--sqlite FILE, --csv FOLDER or --jsonl FOLDER"


def to(path: Path | None, wanted: Mapping[str, Path | None], *, raw: bool, as_json: bool) -> int:
    """Write the archive to the one target that is `wanted`, by the name of its form.

    Raises:
        UsageError: there is not one target, or it cannot be written.
    """
    given = [(form, target) for form, target in wanted.items() if target is not None]
    if len(given) != 1:
        raise UsageError(f"export: give one of {FORMS}")
    [(form, target)] = given
    if form == "sqlite":
        return _to_sqlite(path, target, as_json=as_json)
    write = tables.write_json_lines if form == "jsonl" else partial(tables.write_csv, raw=raw)
    return _to_folder(path, target, form, write, as_json=as_json)


def _to_sqlite(path: Path | None, target: Path, *, as_json: bool) -> int:
    publish.copy_to(open_session(path).engine, target)
    size = target.stat().st_size
    if as_json:
        display.as_json([{"file": str(target), "bytes": size}])
    else:
        display.note(f"{target}: a copy to publish, {size / 1e6:.1f} MB")
    return 0


def _to_folder(
    path: Path | None, folder: Path, form: str, write: tables.Write, *, as_json: bool
) -> int:
    try:
        written = tables.write(open_session(path).engine, folder, form, write)
    except OSError as error:
        raise UsageError(f"--{form} {folder}: cannot be written: {error.strerror}") from None
    if as_json:
        display.as_json([{"file": str(file), "rows": rows} for file, rows in written.items()])
    else:
        for file, rows in written.items():
            display.say(f"{display.safe(file)}: {rows} rows")
    return 0
