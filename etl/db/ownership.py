"""Find out whose the objects in a database are, before we create or drop one of the same name.

A table is ours if a migration that was run has created it. A view is ours if it reads a table of
ours (PostgreSQL), or if its statement has our mark (SQLite). The reporting schema is ours if it
has our view `archive_settings`, or a comment with the identity of this archive.
"""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from etl.db.archive_settings import read_archive_id
from etl.db.database import FOREIGN_REMEDY, migrations_folder, read_revision, shown_url
from etl.db.indexes import metadata
from etl.errors import DatabaseError, Fault

VIEW_MARK = "/* view of result-archiver */"
_SCHEMA_MARK = "Views of the result-archiver archive"
_SETTINGS_VIEW = "archive_settings"
_MAX_SHOWN = 5

_NAMES_ON_SQLITE = """
SELECT name FROM sqlite_master
 WHERE lower(name) IN (SELECT value FROM json_each(:names))
   AND NOT (type = 'view' AND instr(sql, :mark) > 0)
"""
_NAMES_ON_POSTGRESQL = """
SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE nspname = current_schema() AND relname = ANY(:names)
UNION
SELECT typname FROM pg_type JOIN pg_namespace ON pg_namespace.oid = typnamespace
 WHERE nspname = current_schema() AND typname = ANY(:names)
"""
_OBJECTS_IN_SCHEMA = """
SELECT object.relname, EXISTS (
        SELECT FROM pg_rewrite
          JOIN pg_depend ON pg_depend.objid = pg_rewrite.oid
           AND pg_depend.classid = 'pg_rewrite'::regclass
           AND pg_depend.refclassid = 'pg_class'::regclass
          JOIN pg_class AS source ON source.oid = pg_depend.refobjid
          JOIN pg_namespace ON pg_namespace.oid = source.relnamespace
         WHERE pg_rewrite.ev_class = object.oid AND source.relname = ANY(:tables)
           AND pg_namespace.nspname = current_schema())
  FROM pg_class AS object JOIN pg_namespace ON pg_namespace.oid = object.relnamespace
 WHERE pg_namespace.nspname = :schema AND object.relkind IN ('r', 'p', 'v', 'm', 'f')
 ORDER BY object.relname
"""
_RIGHTS = """
SELECT quote_ident(current_user), quote_ident(current_schema()),
       has_schema_privilege(current_schema(), 'CREATE') AS has_tables,
       CASE WHEN to_regnamespace(:schema) IS NULL
            THEN has_database_privilege(current_database(), 'CREATE')
            ELSE has_schema_privilege(:schema, 'CREATE') AND has_schema_privilege(:schema, 'USAGE')
       END AS has_views,
       to_regnamespace(:schema) IS NOT NULL AS has_schema
"""


class Schema(NamedTuple):
    """A schema of PostgreSQL: its comment, and its tables and views, ours and others."""

    comment: str | None
    ours: Collection[str]
    others: Collection[str]


def view_files(connection: Connection) -> list[Path]:
    """Return the files of the views. Some views have the name of their table on SQLite."""
    folder = migrations_folder() / "views"
    further = folder.glob("postgresql/*.sql") if _is_postgresql(connection) else ()
    return sorted([*folder.glob("*.sql"), *further], key=lambda file: file.stem)


def refuse_occupied(
    connection: Connection, schema: str, tables: Iterable[str] = metadata.tables
) -> None:
    """Refuse to create `tables` and views where others have one of their names.

    `schema` is the reporting schema on PostgreSQL.

    Raises:
        DatabaseError: names the object, or the right that is missing.
    """
    _refuse_names(connection, tables)
    if _is_postgresql(connection):
        _refuse_missing_rights(connection, schema)
        _refuse_schema(connection, schema)


def _refuse_names(connection: Connection, tables: Iterable[str]) -> None:
    names = set(tables)
    for each in [metadata.tables[name] for name in names]:
        names |= {str(index.name) for index in each.indexes} | {str(each.primary_key.name)}
    if _is_postgresql(connection):
        query = _NAMES_ON_POSTGRESQL
        given: dict[str, Any] = {"names": sorted(names)}
    else:
        names |= {file.stem for file in view_files(connection)}
        query = _NAMES_ON_SQLITE
        given = {"names": json.dumps(sorted(names)), "mark": VIEW_MARK}
    if taken := sorted(connection.scalars(text(query), given)):
        raise _foreign(connection, f"has {_list(taken)} of another program", FOREIGN_REMEDY)


def _refuse_missing_rights(connection: Connection, schema: str) -> None:
    """Name the rights that PostgreSQL would ask for one after the other."""
    role, first, *granted = connection.execute(text(_RIGHTS), {"schema": schema}).one()
    has_tables, has_views, has_schema = granted
    if first is None:
        raise DatabaseError(
            f"{shown_url(connection.engine)}: search_path names no schema that exists",
            "create the schema, or name another one in database.url",
            Fault.NO_RIGHTS,
        )
    missing = {}
    if not has_tables:
        missing[f"tables in the schema {first}"] = f"GRANT CREATE ON SCHEMA {first} TO {role}"
    if not has_views:
        missing[f"views in the schema {schema}"] = (
            f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}"
            if has_schema
            else f"CREATE SCHEMA {schema} AUTHORIZATION {role}"
        )
    if missing:
        raise DatabaseError(
            f"{shown_url(connection.engine)}: permission denied to create {' and '.join(missing)}",
            f"have an administrator run in this database: {'; '.join(missing.values())};",
            Fault.NO_RIGHTS,
        )


def _refuse_schema(connection: Connection, name: str) -> None:
    remedy = f"set database.reporting_schema to another name than {name}"
    if name == connection.scalar(text("SELECT current_schema()")):
        raise _foreign(connection, f"has the tables in the schema {name}, not the views", remedy)
    schema = read_schema(connection, name)
    if schema is None:
        return
    has_identity = read_revision(connection) is not None
    is_ours = _SETTINGS_VIEW in schema.ours or (
        has_identity and schema.comment == _describe_schema(connection)
    )
    if not is_ours and (
        (schema.comment or "").startswith(_SCHEMA_MARK) or _SETTINGS_VIEW in schema.others
    ):
        raise _foreign(connection, f"has another archive's views in the schema {name}", remedy)
    views = {file.stem for file in view_files(connection)}
    others = [each for each in schema.others if not is_ours or each in views]
    if others:
        problem = f"has {_list(others)} of another program in the schema {name}"
        raise _foreign(connection, problem, remedy)


def read_schema(connection: Connection, name: str) -> Schema | None:
    """Return a schema of PostgreSQL, None if it does not exist."""
    query = text(
        "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = :schema"
    )
    found = connection.execute(query, {"schema": name}).first()
    if found is None:
        return None
    given = {"schema": name, "tables": sorted(metadata.tables)}
    objects = dict(tuple(row) for row in connection.execute(text(_OBJECTS_IN_SCHEMA), given))
    others = [each for each, is_ours in objects.items() if not is_ours]
    return Schema(found[0], objects.keys() - set(others), others)


def create_schema(connection: Connection, name: str) -> None:
    """Create a schema, with a comment that has this archive's identity, if it does not exist."""
    if read_schema(connection, name) is None:
        quoted = quote_name(connection, name)
        connection.exec_driver_sql(f"CREATE SCHEMA {quoted}")
        mark = _describe_schema(connection)
        connection.exec_driver_sql(f"COMMENT ON SCHEMA {quoted} IS '{mark}'")


def drop_schema(connection: Connection, name: str) -> None:
    """Drop a schema that we created, if it is empty."""
    if read_schema(connection, name) == Schema(_describe_schema(connection), set(), []):
        connection.exec_driver_sql(f"DROP SCHEMA {quote_name(connection, name)} RESTRICT")


def drop_views(connection: Connection, schema: str | None) -> None:
    """Drop our views, in `schema` on PostgreSQL, and nothing else."""
    views = {file.stem for file in view_files(connection)}
    if not _is_postgresql(connection):
        query = text("SELECT name FROM sqlite_master WHERE type = 'view' AND instr(sql, :mark) > 0")
        found, prefix = set(connection.scalars(query, {"mark": VIEW_MARK})), ""
    else:
        read = read_schema(connection, schema) if schema else None
        found = set(read.ours) if read else set()
        prefix = f"{quote_name(connection, schema or '')}."
    for name in sorted(views & found):
        connection.exec_driver_sql(f"DROP VIEW {prefix}{name}")


def _describe_schema(connection: Connection) -> str:
    return f"{_SCHEMA_MARK} {read_archive_id(connection)}"


def _foreign(connection: Connection, problem: str, remedy: str) -> DatabaseError:
    return DatabaseError(f"{shown_url(connection.engine)}: {problem}", remedy, Fault.FOREIGN)


def _list(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_MAX_SHOWN])
    return f"{shown} and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else shown


def quote_name(connection: Connection, name: str) -> str:
    """Return a schema's name as SQL."""
    return connection.dialect.identifier_preparer.quote(name)


def _is_postgresql(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"
