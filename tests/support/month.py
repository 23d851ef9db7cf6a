"""The demo's month in an archive, and its facts in plain Python, for figures to be held against.

Facts come from the tables `payloads`, `revisions`, `labels`, `tracked_runs` and `identities`. No
view, no other table and no SQL of ours has a part in them.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import structlog
from msgspec.structs import replace
from psycopg import sql
from sqlalchemy import Engine, Table, select

from etl.answers.compression import decompress
from etl.cli import demo_archive
from etl.config.settings import DEFAULT_RULES, Reporting, StoredSettings
from etl.db import reader, schema
from etl.db.database import connect, connect_to_read
from etl.db.opening import open_or_create
from tests.support import restated
from tests.support.postgres import Server

Row = dict[str, Any]
Ask = Callable[[str], list[Row]]
"""Runs a query as a BI tool does, and returns its rows."""


@dataclass(frozen=True)
class Look:
    """A revision of a run: its answer, and from when to when it was seen."""

    run_id: str
    revision: int
    answer: dict[str, Any]
    observed_at: datetime
    last_seen_at: datetime
    superseded_at: datetime | None


class Month:
    """An archive of the demo's month."""

    def __init__(self, engine: Engine, ask: Ask, zone: str, reader: str = "") -> None:
        self.engine = engine
        self.reader = reader
        self.ask = ask
        self.dialect = engine.dialect.name
        self.zone = ZoneInfo(zone)

    def table(self, table: Table) -> list[Row]:
        """Return all rows of a base table."""
        with self.engine.connect() as connection:
            rows = connection.execute(select(table).order_by(*table.primary_key))
            return [dict(row) for row in rows.mappings()]

    @cached_property
    def looks(self) -> dict[str, list[Look]]:
        """The revisions of each run, oldest first."""
        bodies = {
            (row["run_id"], row["revision"]): decompress(row["body"], row["encoding"])
            for row in self.table(schema.payloads)
        }
        seen = {row["run_id"]: row["last_fetched_at"] for row in self.table(schema.tracked_runs)}
        looks = [
            Look(
                row["run_id"],
                row["revision"],
                json.loads(bodies[row["run_id"], row["revision"]])["result"],
                row["observed_at"],
                row["last_seen_at"] or seen[row["run_id"]],
                row["superseded_at"],
            )
            for row in self.table(schema.revisions)
        ]
        return {run_id: list(those) for run_id, those in groupby(looks, lambda look: look.run_id)}

    @cached_property
    def labels(self) -> dict[str, dict[str, str]]:
        """The labels of each run."""
        found: dict[str, dict[str, str]] = {run_id: {} for run_id in self.looks}
        for row in self.table(schema.labels):
            found[row["run_id"]][row["name"]] = row["value"]
        return found

    @cached_property
    def runs(self) -> list[restated.Run]:
        """The runs, by their newest answer."""
        return [
            restated.read(
                run_id,
                "default",
                looks[-1].answer,
                self.zone,
                self.labels[run_id].get("commit"),
            )
            for run_id, looks in self.looks.items()
        ]

    @cached_property
    def results(self) -> dict[tuple[Any, ...], list[restated.Result]]:
        """The results of each test of each plan under each set of environments.

        The ID tells tests apart where the table `identities` says so, else name and type.
        """
        rules = {row["application"]: row["key_kind"] for row in self.table(schema.identities)}
        found: dict[tuple[Any, ...], list[restated.Result]] = {}
        for run in self.runs:
            answer = self.looks[run.run_id][-1].answer
            for position, test in enumerate(run.tests):
                by_id = rules.get(run.application) == "id"
                key = answer["tests"][position]["id"] if by_id else (test.name, test.type)
                if run.started_at:
                    result = restated.Result(run, position, test)
                    found.setdefault((*run.variant, key), []).append(result)
        return found

    @cached_property
    def series(self) -> list[Row]:
        """Each of these tests by its last results."""
        return [
            dict(zip((*restated.VARIANT, "key"), key, strict=True))
            | restated.one_series(results, DEFAULT_RULES)
            for key, results in self.results.items()
        ]

    def opened_at(self, run: restated.Run) -> datetime:
        """Return the time since which a run waits for a person."""
        opened_at = restated.opened_at(self.stretches(run.run_id))
        assert opened_at
        return opened_at

    def stretches(self, run_id: str) -> list[restated.Stretch]:
        """Return the revisions of a run as `restated` takes them."""
        return [
            restated.Stretch(each.answer, each.observed_at, each.last_seen_at)
            for each in self.looks[run_id]
        ]

    @cached_property
    def status_changes(self) -> list[Row]:
        """Each change of status, with the names of its run."""
        runs = {run.run_id: run for run in self.runs}
        return [
            row | {"application": runs[run_id].application, "plan": runs[run_id].plan}
            for run_id in self.looks
            for row in restated.status_changes(run_id, self.stretches(run_id))
        ]

    @property
    def resolutions(self) -> list[Row]:
        """Each test that somebody decided."""
        return [
            row
            for row in self.status_changes
            if row["from_status"] == "unresolved"
            and row["to_status"] in {"passed", "failed", "aborted"}
            and row["position"] > 0
        ]


def fill(url: str, zone: str) -> None:
    """Archive the demo's month, which ends now, into a new database."""
    settings = StoredSettings(Reporting(time_zone=zone))
    now = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=1)
    with (
        open_or_create(url, settings) as archive,
        demo_archive.serving(now) as (sandbox, config),
    ):
        in_zone = replace(config, reporting=settings.reporting)
        assert demo_archive.ingest_month(archive, in_zone, sandbox) == 0
    structlog.contextvars.clear_contextvars()  # else later lines of logs have its last pass


@contextmanager
def month_on_sqlite(folder: Path, zone: str) -> Iterator[Month]:
    """Give a month in SQLite, which is asked read-only through the driver alone."""
    url = f"sqlite:///{folder}/month.db"
    fill(url, zone)
    engine = connect_to_read(url)

    def ask(query: str) -> list[Row]:
        with engine.connect() as connection:
            rows = connection.exec_driver_sql(query).mappings()
            return [dict(row) for row in rows]

    yield Month(engine, ask, zone)
    engine.dispose()


@contextmanager
def month_on_postgresql(server: Server, zone: str) -> Iterator[Month]:
    """Give a month in PostgreSQL, which is asked as a role that may read the views alone."""
    with server.database() as url:
        fill(url, zone)
        engine = connect(url)
        with granted_role(server, engine) as role, logged_in(engine, role) as connection:

            def ask(query: str) -> list[Row]:
                cursor = connection.execute(query.encode())
                names = [column.name for column in cursor.description or ()]
                return [dict(zip(names, row, strict=True)) for row in cursor]

            yield Month(engine, ask, zone, role)
        engine.dispose()


@contextmanager
def granted_role(server: Server, engine: Engine) -> Iterator[str]:
    """Give a role that may read the views of an archive, as `db grant-reader` lets it."""
    role, database = f"bi_{secrets.token_hex(4)}", engine.url.database or ""
    with server.administer(database) as admin:
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        admin.execute(create.format(sql.Identifier(role), sql.Literal(server.password)))
        for name, value in (reader.SETTINGS | {"search_path": "reporting"}).items():
            alter = sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} = {}")
            names = (sql.Identifier(role), sql.Identifier(database), sql.Identifier(name))
            admin.execute(alter.format(*names, sql.Literal(value)))
        reader.grant_views(engine, role)
        yield role
        admin.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@contextmanager
def logged_in(engine: Engine, role: str) -> Iterator[psycopg.Connection]:
    """Connect as that role."""
    url = engine.url
    with closing(
        psycopg.connect(
            host=url.host, port=url.port, user=role, password=url.password, dbname=url.database
        )
    ) as connection:
        connection.autocommit = True
        yield connection


def as_day(value: Any) -> Any:
    """Return a day as both databases can be compared: as text."""
    return str(value)[:10]


def rounded(rows: Sequence[Row]) -> list[Row]:
    """Return rows with numbers as floats of nine digits, whatever the driver gives."""
    return [{name: _rounded(value) for name, value in row.items()} for row in rows]


def _rounded(value: Any) -> Any:
    if isinstance(value, (bool, str)) or value is None:
        return value
    try:
        return round(float(value), 9)
    except (TypeError, ValueError):
        return value
