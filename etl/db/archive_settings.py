"""An archive's record of itself: its identity, and the settings of its derived rows.

All derived rows follow from one set of settings. A pass computes with the stored ones, whatever
the configuration says; only a rebuild (`begin_rebuild`) changes them. Until that is complete,
`METRIC_VERSION` is not stored, and nothing else reads or writes the archive.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec.structs import asdict
from sqlalchemy import Connection, Engine, select, text

from etl.config.settings import DEFAULT_TO_STORE, Reporting, StoredSettings
from etl.db import bulk
from etl.db.database import METRIC_VERSION, describe_incomplete, shown_url, writing
from etl.db.schema import archive_settings, payloads
from etl.errors import DatabaseError, Fault

ARCHIVE_ID = "archive_id"
SCHEMA_VERSION = "schema_version"
VIEWS = "view_version"
METRICS = "metric_version"
REPORTING_SCHEMA = "database.reporting_schema"
REPORTING = "reporting."
TOKEN_KEY = "token_key"  # noqa: S105  the name of a row
DESCRIPTIONS = {
    ARCHIVE_ID: "Identity of this archive, generated when it was created",
    SCHEMA_VERSION: "Revision of the tables",
    VIEWS: "Version of the definitions of the views",
    METRICS: "Version of the rules that derived rows follow; empty while they are being derived",
    TOKEN_KEY: "Fingerprint of the key that encrypts read tokens",
    REPORTING_SCHEMA: "Schema of the views that BI tools read",
    f"{REPORTING}time_zone": "Time zone of the days in derived rows",
    f"{REPORTING}window_results": "Window of a test: its last decided results, up to this number",
    f"{REPORTING}window_days": "Window of durations and trends, in days",
    f"{REPORTING}flaky_min_results": "Minimum of decided results in the window of a flaky test",
    f"{REPORTING}flaky_min_flips": "Minimum of flips in the window of a flaky test",
    f"{REPORTING}flaky_min_flip_rate": "Minimum of flips per pair of neighbours of a flaky test",
}
_MAY_BE_IDLE = "set_config('idle_in_transaction_session_timeout', '0', true)"
_LOCK = 0x73_65_74_74_69_6E_67  # "setting": any number that all processes share


class SettingDifference(NamedTuple):
    """A setting whose value in the configuration is not the stored one."""

    name: str
    configured: str
    stored: str

    @property
    def problem(self) -> str:
        """The two values."""
        return (
            f"{self.name} is {self.configured!r} in the configuration, but {self.stored!r} in the"
            " archive, which goes on with that"
        )

    @property
    def remedy(self) -> str:
        """The command that stores the configured value."""
        command = "replay" if self.name.startswith(REPORTING) else "db upgrade"
        return f"`result-archiver {command}` changes the archive to the configuration"

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


def read_settings(connection: Connection) -> StoredSettings:
    """Return the settings of all derived rows.

    Raises:
        DatabaseError: the rows are incomplete, or a setting is damaged.
    """
    if _read_rows(connection).get(METRICS) != METRIC_VERSION:
        raise describe_incomplete(connection.engine)
    return read_settings_of_rebuild(connection)


def read_settings_of_rebuild(connection: Connection) -> StoredSettings:
    """Return the settings that rows are derived with, although some may not have been yet.

    Raises:
        DatabaseError: a setting is damaged.
    """
    rows = _read_rows(connection)
    given = {
        name.removeprefix(REPORTING): value
        for name, value in rows.items()
        if name.startswith(REPORTING)
    }
    try:
        reporting = msgspec.convert(given, Reporting, strict=False)
        ZoneInfo(reporting.time_zone)
    except (msgspec.ValidationError, ZoneInfoNotFoundError, ValueError) as error:
        raise DatabaseError(
            f"{shown_url(connection.engine)}: a row of archive_settings is damaged: {error}",
            "`result-archiver replay` writes it from the configuration",
        ) from None
    return StoredSettings(reporting, rows.get(REPORTING_SCHEMA, DEFAULT_TO_STORE.reporting_schema))


def hold_settings(connection: Connection) -> Reporting:
    """Return the settings to derive rows with, which do not change before the commit.

    Takes a shared lock on PostgreSQL, where `begin_rebuild` takes the exclusive one. That has no
    other lock, so the place in the lock order does not matter.

    Raises:
        DatabaseError: a rebuild has begun and is not complete, or a setting is damaged.
    """
    _lock(connection, "pg_advisory_xact_lock_shared")
    return read_settings(connection).reporting


def require_settings(connection: Connection, derived_with: Reporting) -> None:
    """Check that derived rows can be written, and hold the settings as `hold_settings` does.

    Raises:
        DatabaseError: a rebuild has begun, or has changed the settings since they were read.
    """
    if hold_settings(connection) != derived_with:
        raise _describe_change(connection)


def require_rebuild(connection: Connection, derived_with: Reporting) -> None:
    """Check that a rebuild can write rows, and hold the settings as `hold_settings` does.

    The transaction may be idle while the rows of a large plan are computed.

    Raises:
        DatabaseError: another rebuild has begun, with other settings.
    """
    _lock(connection, "pg_advisory_xact_lock_shared", f", {_MAY_BE_IDLE}")
    if read_settings_of_rebuild(connection).reporting != derived_with:
        raise _describe_change(connection)


def _describe_change(connection: Connection) -> DatabaseError:
    return DatabaseError(
        f"{shown_url(connection.engine)}: a replay has changed the settings of its derived rows"
        " meanwhile",
        "run the command again; due runs stay due",
        Fault.BEHIND,
    )


def find_differences(
    stored: StoredSettings, configured: StoredSettings, dialect: str
) -> Iterator[SettingDifference]:
    """Yield the settings that differ from the configuration's."""
    values = dict(_list_values(stored.reporting))
    for name, value in _list_values(configured.reporting):
        if values[name] != value:
            yield SettingDifference(name, value, values[name])
    if dialect == "postgresql" and stored.reporting_schema != configured.reporting_schema:
        schemas = configured.reporting_schema, stored.reporting_schema
        yield SettingDifference(REPORTING_SCHEMA, *schemas)


def begin_rebuild(engine: Engine, wanted: Reporting) -> None:
    """Store the settings that all rows will be derived with; a no-op if they are stored.

    Waits for every transaction that derives rows with the old settings; those that begin later
    are refused until `end_rebuild`.
    """
    with writing(engine) as connection:
        stored = _read_rows(connection)
        values = dict(_list_values(wanted))
        if any(stored.get(name) != value for name, value in values.items()):
            _lock(connection, "pg_advisory_xact_lock")
            _write(connection, values | {METRICS: ""})


def end_rebuild(engine: Engine, derived_with: Reporting) -> None:
    """Mark the derived rows as complete. Raises DatabaseError if their settings changed."""
    with writing(engine) as connection:
        require_rebuild(connection, derived_with)
        _write(connection, {METRICS: METRIC_VERSION})


def record_settings(connection: Connection, wanted: StoredSettings) -> None:
    """Complete the rows after a migration to `HEAD`. Settings of derived rows stay as stored.

    If no metric version is stored, there were no derived rows: those of archived runs are marked
    as incomplete, before the first of them.
    """
    stored = _read_rows(connection)
    has_runs = connection.execute(select(payloads.c.run_id).limit(1)).first() is not None
    defaults = dict(_list_values(wanted.reporting)) | {METRICS: "" if has_runs else METRIC_VERSION}
    changes = {}
    if connection.dialect.name == "postgresql":
        changes[REPORTING_SCHEMA] = wanted.reporting_schema
    _write(connection, defaults | stored | changes)


def record_version(connection: Connection, revision: str) -> None:
    """Store the revision that the tables were migrated to."""
    _write(connection, {SCHEMA_VERSION: revision})


def record_view_version(connection: Connection, version: str) -> None:
    """Store the version of the views that were created."""
    _write(connection, {VIEWS: version})


def read_reporting_schema(connection: Connection) -> str | None:
    """Return the schema of the views, None on SQLite and before there are any."""
    return _read_rows(connection).get(REPORTING_SCHEMA)


def read_archive_id(connection: Connection) -> str | None:
    """Return the archive's identity, None before there is an archive."""
    return _read_rows(connection).get(ARCHIVE_ID)


def read_token_key(connection: Connection) -> str | None:
    """Return the fingerprint of the key that encrypts read tokens, None before the first token."""
    return _read_rows(connection).get(TOKEN_KEY)


def record_token_key(connection: Connection, fingerprint: str) -> None:
    """Store the fingerprint of the key that encrypts read tokens."""
    if read_token_key(connection) != fingerprint:
        _write(connection, {TOKEN_KEY: fingerprint})


def _read_rows(connection: Connection) -> dict[str, str]:
    query = select(archive_settings.c.name, archive_settings.c.value)
    return {row.name: row.value for row in connection.execute(query)}


def _write(connection: Connection, values: Mapping[str, str]) -> None:
    insert = bulk.upsert_into(connection, archive_settings)
    changes = {name: insert.excluded[name] for name in ("value", "description")}
    connection.execute(
        insert.on_conflict_do_update(index_elements=["name"], set_=changes),
        [
            {"name": name, "value": value, "description": DESCRIPTIONS[name]}
            for name, value in values.items()
        ],
    )


def _list_values(reporting: Reporting) -> list[tuple[str, str]]:
    """Return the settings by name, as the archive stores them."""
    return [(f"{REPORTING}{name}", str(value)) for name, value in asdict(reporting).items()]


def _lock(connection: Connection, function: str, more: str = "") -> None:
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time
        connection.execute(text(f"SELECT {function}({_LOCK}){more}"))
