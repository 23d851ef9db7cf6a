"""`make views`: write docs/VIEWS.md from what a new archive says of its views."""

import tempfile
from pathlib import Path

from sqlalchemy import Connection, inspect, select

from etl.db.database import connect, prepare, reading
from etl.db.schema import data_dictionary

PAGE = Path(__file__).parents[2] / "docs" / "VIEWS.md"

INTRODUCTION = """\
# The views

What BI tools and your own queries read; [BI.md](BI.md) tells how to connect them. Names and
meanings stay as they are from version to version, and are the same on both databases. On PostgreSQL
the views are in the schema `reporting`, with what follows as comments; on both it can be read with
`SELECT * FROM data_dictionary`. How the numbers are counted, and why so: [REPORTS.md](REPORTS.md).

This page is written by `make views` from `migrations/views/` and `migrations/dictionary.toml`.
"""


def page() -> str:
    """Return the page, made from a new archive."""
    with tempfile.TemporaryDirectory() as folder:
        engine = connect(f"sqlite:///{folder}/archive.db")
        prepare(engine)
        with reading(engine) as connection:
            names = [*inspect(connection).get_view_names(), data_dictionary.name]
            sections = [_section(connection, name) for name in sorted(names)]
        engine.dispose()
    return "\n".join([INTRODUCTION, *sections])


def _section(connection: Connection, view: str) -> str:
    query = select(data_dictionary.c.column_name, data_dictionary.c.description)
    of_view = data_dictionary.c.object_name == view
    meanings: dict[str, str] = dict(connection.execute(query.where(of_view)).all())
    columns = [column["name"] for column in inspect(connection).get_columns(view)]
    rows = [f"| {name} | {meanings.get(name, '')} |" for name in columns]
    description = meanings.get("", "")
    text = description[:1].upper() + description[1:]
    return "\n".join([f"## {view}", text, "", "| column | meaning |", "|---|---|", *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
