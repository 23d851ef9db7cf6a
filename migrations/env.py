"""Run the migrations on the connection that `etl.database` hands over, in its transaction.

Called by the `alembic` command itself (to write a new migration), it connects as configured.
The views are taken down first and put up again at the newest revision: SQLite cannot rebuild a
table that a view reads, and so no migration has to mention one. What they and their columns mean
(the first lines of their files, and dictionary.toml) is then written into `data_dictionary`.
Where another program or archive has one of our names, nothing is changed.
"""

import tomllib
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from alembic import context
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Boolean,
    Connection,
    Date,
    DateTime,
    Float,
    Integer,
    delete,
    insert,
    inspect,
    text,
)
from sqlalchemy.engine.reflection import ObjectKind
from sqlalchemy.types import TypeEngine

from etl.config import loading
from etl.config.settings import StoredSettings
from etl.db import archive_settings, indexes, ownership, schema
from etl.db.database import read_revision
from etl.db.opening import open_to_migrate

FOLDER = Path(__file__).parent

AGE_IN_DAYS = {
    "sqlite": "julianday('now') - julianday(outcomes.opened_at)",
    "postgresql": "extract(epoch FROM now() - outcomes.opened_at) / 86400",
}
"""The time since a run waits for a person, as each database computes it."""
_TYPE_OF_SERIES_ID = "UNION ALL SELECT series_id FROM series WHERE 0"
"""Gives the computed column a type on SQLite, which some clients need; reads nothing."""
TYPED_SERIES_ID = {
    "sqlite": f"(SELECT {schema.SERIES_ID['sqlite']} {_TYPE_OF_SERIES_ID})",
    "postgresql": schema.SERIES_ID["postgresql"],
}
"""The series of a test as a column of a view."""
COMMENT_ON_ALL = r"""
DO $$
DECLARE entry record;
BEGIN
    FOR entry IN SELECT * FROM data_dictionary LOOP
        EXECUTE CASE entry.column_name
            WHEN '' THEN format('COMMENT ON VIEW {schema}.%I IS %L',
                                entry.object_name, entry.description)
            ELSE format('COMMENT ON COLUMN {schema}.%I.%I IS %L',
                        entry.object_name, entry.column_name, entry.description)
        END;
    END LOOP;
END $$
"""


def _migrate(connection: Connection, to_store: StoredSettings | None) -> None:
    """Migrate up, and store settings, or migrate down if there are none to store."""
    context.configure(
        connection=connection,
        target_metadata=indexes.metadata,
        version_table=schema.VERSION_TABLE,
        transactional_ddl=True,
        compare_type=True,
    )
    before = read_revision(connection)
    stored = archive_settings.read_reporting_schema(connection) if before else None
    wanted = to_store or StoredSettings(reporting_schema=stored or "")
    context.config.attributes["reporting_schema"] = wanted.reporting_schema
    if to_store:
        tables = list(_list_new_tables(before))
        ownership.refuse_occupied(connection, to_store.reporting_schema, tables)
    ownership.drop_views(connection, stored)
    with context.begin_transaction():
        context.run_migrations()
    after = read_revision(connection)
    if after:
        archive_settings.record_version(connection, after)
    if after != context.get_head_revision():
        return
    archive_settings.record_settings(connection, wanted)
    if stored and stored != wanted.reporting_schema:
        ownership.drop_schema(connection, stored)
    in_schema = archive_settings.read_reporting_schema(connection)
    if in_schema:
        ownership.create_schema(connection, in_schema)
    _create_views(connection, in_schema)
    archive_settings.record_view_version(connection, _read_view_version())
    _describe(connection, in_schema)


def _list_new_tables(before: str | None) -> Iterator[str]:
    """Yield the tables that the migrations since a revision create."""
    scripts = ScriptDirectory.from_config(context.config)
    for script in scripts.iterate_revisions("heads", before):
        yield from getattr(script.module, "TABLES", ())


def _read_view_version() -> str:
    versions = tomllib.loads((FOLDER / "view_versions.toml").read_text(encoding="utf-8"))
    return max(versions, key=int)


def _create_views(connection: Connection, in_schema: str | None) -> None:
    prefix = f"{ownership.quote_name(connection, in_schema)}." if in_schema else ""
    for file in ownership.view_files(connection):
        statement = file.read_text(encoding="utf-8").replace("{reporting}", prefix)
        placeholders = {
            "age_in_days": AGE_IN_DAYS,
            "series_id": schema.SERIES_ID,
            "typed_series_id": TYPED_SERIES_ID,
        }
        for name, by_dialect in placeholders.items():
            statement = statement.replace(f"{{{name}}}", by_dialect[connection.dialect.name])
        marked = statement.replace(" AS\n", f" AS {ownership.VIEW_MARK}\n", 1)
        connection.exec_driver_sql(marked)


def _describe(connection: Connection, in_schema: str | None) -> None:
    """Write down each view and column; a test sees to it that none is left out."""
    table = schema.data_dictionary
    files = sorted(FOLDER.glob("views/**/*.sql"))
    views = {file.stem: _first_lines(file) for file in files}
    found = inspect(connection).get_multi_columns(
        schema=in_schema, filter_names=list(views), kind=ObjectKind.ANY
    )
    dictionary = Dictionary.read(FOLDER / "dictionary.toml")
    rows: list[tuple[str | None, ...]] = [
        (view, "", meaning, None, None, None) for view, meaning in views.items()
    ]
    for (_, view), columns in found.items():
        rows += [(view, *dictionary.describe(view, each["name"], each["type"])) for each in columns]
    connection.execute(delete(table))
    names = [column.name for column in table.columns]
    described = [dict(zip(names, row, strict=True)) for row in rows if row[2]]
    connection.execute(insert(table), described)
    if in_schema:
        quoted = ownership.quote_name(connection, in_schema)
        connection.execute(text(COMMENT_ON_ALL.replace("{schema}", quoted)))


class Dictionary(NamedTuple):
    """dictionary.toml: the meaning of columns, and their kind and unit where no rule tells."""

    meanings: Mapping[str, dict[str, str]]
    kinds: Mapping[str, str]
    units: Mapping[str, str]

    @classmethod
    def read(cls, file: Path) -> "Dictionary":
        """Read the file."""
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        kinds, units = (
            {name: word for word, names in content.pop(part).items() for name in names}
            for part in ("kinds", "units")
        )
        return cls(content, kinds, units)

    def describe(self, view: str, name: str, declared: TypeEngine[Any]) -> tuple[str | None, ...]:
        """Return a column's name, meaning, type, kind and unit."""
        meaning = (self.meanings["shared"] | self.meanings.get(view, {})).get(name, "")
        type_name, kind = _read_type(name, declared)
        kind = _look_up(self.kinds, view, name) or kind
        unit = _look_up(self.units, view, name) or _default_unit(name, type_name, kind)
        return name, meaning, type_name, kind, unit


def _look_up(words: Mapping[str, str], view: str, name: str) -> str | None:
    return words.get(f"{view}.{name}") or words.get(name)


def _read_type(name: str, declared: TypeEngine[Any]) -> tuple[str, str]:
    """Return a column's type on PostgreSQL, and the kind that follows from it."""
    match declared:
        case Date() | DateTime():  # SQLite declares both alike
            is_day = name in schema.DAYS
            return ("date" if is_day else "timestamp with time zone"), "time"
        case Boolean():
            return "boolean", "flag"
        case Integer():
            return "bigint", "count"
        case Float():
            return "double precision", "rate"
        case _:
            return "text", "dimension"


def _default_unit(name: str, type_name: str, kind: str) -> str | None:
    if kind == "time":
        return "day" if type_name == "date" else "UTC"
    if name.endswith("_ms"):
        return "milliseconds"
    return "share" if kind == "rate" else None


def _first_lines(view: Path) -> str:
    """Return what a view's file begins with: "-- NAME: what a row is, ..."."""
    lines = takewhile(lambda line: line.startswith("-- "), view.read_text("utf-8").splitlines())
    return " ".join(line.removeprefix("-- ") for line in lines).removeprefix(f"{view.stem}: ")


given = context.config.attributes
if "connection" in given:
    _migrate(given["connection"], given["to_store"])
else:
    config = loading.load(None)
    with open_to_migrate(config.database.url) as archive, archive.writing() as opened:
        _migrate(opened, config.to_store)
