"""Every test gets an environment of its own, no network but loopback, and both databases."""

import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from etl.db.database import connect, prepare
from tests.support import fake_api, loopback
from tests.support.fake_api import FakeApi
from tests.support.postgres import Server, running_server
from tests.support.program import Program, program

# Variables that change the program's work or the look of its output, by the start of their names.
OUTSIDE_INFLUENCES = (
    "APPLITOOLS_", "RESULT_ARCHIVER__", "PG", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS",
)  # fmt: skip


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tests' homes. `mktemp` for each would list all former ones each time."""
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts in an empty folder, with an empty home and none of our variables set."""
    for name in os.environ:
        if name.upper().startswith(OUTSIDE_INFLUENCES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", tempfile.mkdtemp(dir=homes))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def this_machine_only() -> Iterator[None]:
    """Fail a test whose process tries to reach another machine (loopback.py names the limits)."""
    with loopback.refusals() as refused:
        yield
    if refused:
        pytest.fail("\n".join(refused), pytrace=False)


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
