"""`make views`: write docs/VIEWS.md from the descriptions in a new archive."""

import tempfile
from pathlib import Path

from sqlalchemy import Connection, inspect, select

from etl.db.database import connect, prepare, reading
from etl.db.schema import data_dictionary

TABLES = ("archive_settings", "data_dictionary")
"""What is a table on SQLite, and a view on PostgreSQL."""
PAGE = Path(__file__).parents[2] / "docs" / "VIEWS.md"

INTRODUCTION = """\
# The views

BI tools and your own queries read these views; [BI.md](BI.md) explains how to connect the tools.
Names and meanings stay the same from version to version and on both databases. On PostgreSQL the
views are in the schema `reporting` (setting `database.reporting_schema`), with the texts below as
comments. On both databases `SELECT * FROM data_dictionary` returns the texts. Types are those of
PostgreSQL. A column's kind tells its use: a `key` joins rows, a `dimension` groups them, a `count`
can be summed, a `rate` must be neither summed nor averaged.
[REPORTS.md](REPORTS.md) gives the formulas and their reasons.

`make views` writes this page from `migrations/views/` and `migrations/dictionary.toml`.
"""


def page() -> str:
    """Return the page, made from a new archive."""
    with tempfile.TemporaryDirectory() as folder:
        engine = connect(f"sqlite:///{folder}/archive.db")
        prepare(engine)
        with reading(engine) as connection:
            names = [*inspect(connection).get_view_names(), *TABLES]
            sections = [_section(connection, name) for name in sorted(names)]
        engine.dispose()
    return "\n".join([INTRODUCTION, *sections])


def _section(connection: Connection, view: str) -> str:
    dictionary = data_dictionary.c
    query = select(
        dictionary.column_name,
        dictionary.description,
        dictionary.type,
        dictionary.kind,
        dictionary.unit,
    )
    of_view = query.where(dictionary.object_name == view)
    described = {name: values for name, *values in connection.execute(of_view)}
    columns = [column["name"] for column in inspect(connection).get_columns(view)]
    rows = [_row(name, *described[name]) for name in columns]
    [text, *_] = described[""]
    head = "| column | type | kind | unit | meaning |"
    section = [f"## {view}", text[:1].upper() + text[1:], "", head, "|---|---|---|---|---|"]
    return "\n".join([*section, *rows, ""])


def _row(name: str, meaning: str, type_name: str, kind: str, unit: str | None) -> str:
    return f"| {name} | {type_name} | {kind} | {unit or ''} | {meaning} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
