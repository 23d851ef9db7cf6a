"""What every test gets: an environment of its own, and both databases."""

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from etl.db.database import connect, prepare
from tests.support import fake_api
from tests.support.fake_api import FakeApi
from tests.support.postgres import Server, running_server
from tests.support.program import Program, program

# What would change what the program does or how its output looks, by the start of its name.
OUTSIDE_INFLUENCES = (
    "APPLITOOLS_", "RESULT_ARCHIVER__", "PG", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS",
)  # fmt: skip


@pytest.fixture(autouse=True)
def isolated(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each test starts in an empty folder, with an empty home and none of our variables set."""
    for name in os.environ:
        if name.upper().startswith(OUTSIDE_INFLUENCES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a new, empty database: the test runs once on each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def sqlite_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a SQLite file that does not exist yet."""
    request.node.user_properties.append(("database", f"SQLite {sqlite3.sqlite_version}"))
    return f"sqlite:///{tmp_path}/archive.db"


@pytest.fixture
def postgresql_url(request: pytest.FixtureRequest, postgresql: Server) -> Iterator[str]:
    """The URL of a new PostgreSQL database, with its password."""
    request.node.user_properties.append(("database", f"PostgreSQL {postgresql.version}"))
    with postgresql.database() as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A new archive on each kind of database."""
    engine = connect(database_url)
    prepare(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """An API that answers what the test says."""
    with fake_api.serving() as api:
        yield api


@pytest.fixture
def archiver(tmp_path: Path, database_url: str, api: FakeApi) -> Program:
    """The program on each kind of database, with that API."""
    return program(tmp_path, database_url, api.url)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """The server of this test run. A machine without PostgreSQL is an error, not a skip."""
    with running_server() as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests really ran, and passed, on which database."""
    tests = Counter(
        value
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == "database"
    )
    ran = ", ".join(f"{count} tests on {database}" for database, count in sorted(tests.items()))
    terminalreporter.write_line(f"databases: {ran or 'none'}")
