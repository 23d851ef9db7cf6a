"""`doctor` tells apart what can be wrong, each with its remedy and exit code."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.fernet import Fernet
from psycopg import sql
from sqlalchemy import make_url, text

from etl.cli.session import Wiring
from etl.db import database
from etl.fetch.rate_limit import Pauses
from etl.sandbox.api import EXECUTE_KEY
from etl.sandbox.server import Sandbox, running
from etl.sandbox.world import World
from etl.sandbox.world_clock import Clock
from tests.support import fake_api, faulty
from tests.support.fake_api import FakeApi, result
from tests.support.faulty import Faulty, reply, send
from tests.support.pooler import pooled, wait_for
from tests.support.postgres import ADMIN, IN_ENCODING, ROLE, Server, free_port
from tests.support.program import HARMLESS, Done, Program, program

END = datetime(2026, 1, 15, 12, tzinfo=UTC)
RUN_IDS = [each.run_id for each in World(end=END, runs=20).runs(END)][:6]
LOGIN_PAGE = b"<!doctype html><title>Log in</title>"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running(World(end=END, runs=20), Clock(END, speed=0)) as sandbox:
        yield sandbox


@pytest.fixture
def archiver(tmp_path: Path, database_url: str, sandbox: Sandbox) -> Program:
    return program(tmp_path, database_url, sandbox.url)


@pytest.fixture
def with_sqlite(tmp_path: Path, sqlite_url: str, sandbox: Sandbox) -> Program:
    return program(tmp_path, sqlite_url, sandbox.url)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with fake_api.serving() as api:
        yield api


@pytest.fixture
def server() -> Iterator[Faulty]:
    with faulty.serving() as server:
        yield server


def at(archiver: Program, url: str) -> Program:
    return archiver.given(RESULT_ARCHIVER__API__BASE_URL=url)


def findings(archiver: Program) -> dict[str, dict[str, Any]]:
    """Return what `doctor --json` found, by its subject."""
    return found_in(archiver.call("doctor", "--json"))


def found_in(done: Done) -> dict[str, dict[str, Any]]:
    """Return findings by their subject; the exit code is that of the gravest problem."""
    found = {finding.pop("subject"): finding for finding in done.json()}
    for finding in found.values():
        assert finding.keys() == {"state", "reason", "problem", "remedy", "exit_code"}
        assert bool(finding["state"]) == (finding["reason"] == "ok") == (not finding["problem"])
        assert not finding["exit_code"] or finding["remedy"]
    codes = {finding["exit_code"] for finding in found.values()}
    assert done.exit_code == next((code for code in (2, 4, 3, 5, 1) if code in codes), 0)
    return found


def problems(archiver: Program) -> dict[str, tuple[str, str, int]]:
    """Return problem, remedy and exit code of all that stops a command, by its subject."""
    return {
        subject: (finding["problem"], finding["remedy"], finding["exit_code"])
        for subject, finding in findings(archiver).items()
        if finding["exit_code"]
    }


def test_all_is_well(archiver: Program, sandbox: Sandbox) -> None:
    archiver.call("ingest", next(sandbox.world.runs(END)).run_id)
    done = archiver.call("doctor")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert {line[:8] for line in lines} <= {"ok      ", "        "}
    assert max(map(len, lines)) <= 80
    text = " ".join(done.stdout.split())
    for words in ("is up to date", "source default: the key is accepted, and reads results",
                  "source default clock: agrees with this machine's"):  # fmt: skip
        assert words in text


def test_a_new_database_is_no_problem_and_is_not_made_by_looking(archiver: Program) -> None:
    found = findings(archiver)["database"]
    assert found["state"].endswith("is new: the first ingest creates its tables")
    assert not Path("archive.db").exists()


def test_a_new_database_that_could_not_be_made(with_sqlite: Program) -> None:
    with_sqlite.write("taken", "a file, not a folder")
    taken = with_sqlite.folder / "taken"
    url = f"sqlite:///{taken}/results.db"
    assert problems(with_sqlite.given(RESULT_ARCHIVER__DATABASE__URL=url)) == {
        "database": (
            f"{taken}: no file can be written beside the archive: Not a directory",
            "make the folder writable, or change database.url",
            4,
        )
    }


def test_no_key(with_sqlite: Program) -> None:
    assert problems(with_sqlite.given(APPLITOOLS_API_KEY="")) == {
        "source default": (
            "has no API key",
            "no API key: set APPLITOOLS_API_KEY, or api.key_file in config.toml",
            2,
        )
    }


def test_a_refused_key(with_sqlite: Program) -> None:
    assert problems(with_sqlite.given(APPLITOOLS_API_KEY="unknown-key")) == {
        "source default": (
            "the API refuses the key (401)",
            "set the right key in the environment or the key file",
            3,
        )
    }


def test_a_key_without_read_permission_can_be_lived_with(with_sqlite: Program) -> None:
    found = findings(with_sqlite.given(APPLITOOLS_API_KEY=EXECUTE_KEY))["source default"]
    assert found == {
        "state": "",
        "reason": "no_permission",
        "problem": "the key is accepted, but has no read permission (403)",
        "remedy": "track each run with its read token, or ask for a key that may read",
        "exit_code": 0,
    }


def test_an_api_that_cannot_be_reached(with_sqlite: Program) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    [(verdict, remedy, exit_code)] = problems(at(with_sqlite, url)).values()
    assert verdict == f"{url.removeprefix('http://')} refuses connections"
    assert remedy == "check base_url and its port"
    assert exit_code == 5


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (reply(b"", "500 Internal Server Error"), "the API answered 500"),
        (reply(b"", "302 Found", "Location: /login"), "the API answered 302"),
        (reply(b"", "400 Bad Request"), "the API answered 400"),
        (reply(LOGIN_PAGE, "200 OK", "Content-Type: text/html"), "{url} answers, but with no"),
        (reply(b'{"status": "up"}'), "{url} answers, but with no result of the API"),
    ],
)
def test_something_else_than_the_api(
    with_sqlite: Program, server: Faulty, answer: bytes, verdict: str
) -> None:
    server.answer = send(answer)
    found = problems(at(with_sqlite, server.url))
    assert found["source default"][0].startswith(verdict.format(url=server.url))
    assert found["source default"][1:] == ("check base_url: this does not look like the API", 5)


def test_an_api_that_is_busy(with_sqlite: Program, server: Faulty) -> None:
    server.answer = send(reply(b"", "429 Too Many Requests"))
    assert problems(at(with_sqlite, server.url))["source default"] == (
        "the API asks for patience (429)",
        "wait, and lower api.max_requests_per_second if it happens often",
        5,
    )


def test_a_database_that_cannot_be_reached(
    tmp_path: Path, postgresql_url: str, sandbox: Sandbox
) -> None:
    url = make_url(postgresql_url).set(port=free_port())
    archiver = program(tmp_path, url.render_as_string(hide_password=False), sandbox.url)
    [(verdict, remedy, exit_code)] = problems(archiver).values()
    assert f"127.0.0.1:{url.port}/" in verdict
    assert "refused" in verdict
    assert str(url.password) not in verdict
    assert remedy == "check database.url, and that the database runs and lets this user in"
    assert exit_code == 4


def test_a_file_that_is_no_database(with_sqlite: Program) -> None:
    with_sqlite.write("archive.db", "no database " * 100)
    [(verdict, _remedy, exit_code)] = problems(with_sqlite).values()
    assert verdict.endswith("archive.db: file is not a database")
    assert exit_code == 4


@pytest.mark.parametrize(
    ("revision", "remedy"),
    [("0001", "run `result-archiver db upgrade`"), ("9999", "install the newer result-archiver")],
)
def test_a_database_of_another_revision(
    archiver: Program, database_url: str, revision: str, remedy: str
) -> None:
    archiver.call("ingest")
    engine = database.connect(database_url)
    with database.writing(engine) as connection:
        connection.execute(text(f"UPDATE result_archiver_version SET version_num = '{revision}'"))
    engine.dispose()
    [(verdict, told, exit_code)] = problems(archiver).values()
    assert f"its tables are at revision {revision}" in verdict
    assert (told, exit_code) == (remedy, 4)


@pytest.mark.parametrize(
    ("seconds", "is_problem"), [(-3600, True), (3600, True), (-50, False), (50, False)]
)
def test_a_clock_that_is_wrong(
    with_sqlite: Program, server: Faulty, seconds: int, is_problem: bool
) -> None:
    told = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
    server.answer = send(reply(b"", "404 Not Found", f"Date: {told}"))
    found = problems(at(with_sqlite, server.url))
    if not is_problem:
        assert found == {}
        return
    [(subject, (verdict, remedy, exit_code))] = found.items()
    assert subject == "source default clock"
    assert re.fullmatch(r"differs by (3599|3600|3601) s", verdict)
    assert remedy.startswith("set this machine's clock (NTP)")
    assert exit_code == 1


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_token_key_that_others_can_read(with_sqlite: Program, mode: int) -> None:
    with_sqlite.write("tokens.csv", "run_id,read_token\nr1,token-1\n")
    with_sqlite.call("track", "--from", "tokens.csv")
    [key_file] = (with_sqlite.folder / "home").rglob("token.key")
    key_file.chmod(mode)
    found = findings(with_sqlite)["token key"]
    if mode == 0o600:
        assert found["state"] == "can be used"
    else:
        assert found["problem"] == f"security.token_key_file: {key_file} can be read by others"
        assert (found["remedy"], found["exit_code"]) == (f"run `chmod 600 {key_file}`", 2)


def test_a_known_run_is_what_is_asked_for(with_sqlite: Program, api: FakeApi) -> None:
    api.answers["r1"] = [result()]
    archiver = at(with_sqlite, api.url)
    archiver.call("ingest", "r1")
    before = api.requests["r1"]
    assert problems(archiver) == {}
    assert api.requests["r1"] > before
    assert set(api.requests) == {"r1"}


def test_each_source_has_its_own_findings(with_sqlite: Program) -> None:
    archiver = with_sqlite.given(
        RESULT_ARCHIVER__SOURCES__EU__BASE_URL=with_sqlite.environment[
            "RESULT_ARCHIVER__API__BASE_URL"
        ],
        RESULT_ARCHIVER__SOURCES__EU__KEY_ENV="EU_API_KEY",
    )
    assert problems(archiver) == {
        "source eu": ("has no API key", "no API key for source eu: set EU_API_KEY", 2)
    }
    refused = archiver.given(EU_API_KEY="unknown-key")
    assert {subject: code for subject, (*_, code) in problems(refused).items()} == {"source eu": 3}


def test_several_problems_are_all_told_and_the_exit_code_is_that_of_ingest(
    with_sqlite: Program,
) -> None:
    with_sqlite.write("archive.db", "no database " * 100)
    done = with_sqlite.given(APPLITOOLS_API_KEY="unknown-key").call("doctor")
    assert done.exit_code == 4
    marks = [line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert marks.count("problem") == 2


@pytest.mark.parametrize("name", ["deep/" * 40 + "results.db", "\u202e" + "x" * 200 + ".db"])
def test_the_output_fits_80_columns(with_sqlite: Program, name: str) -> None:
    url = f"sqlite:///{with_sqlite.folder}/{name}"
    done = with_sqlite.given(
        RESULT_ARCHIVER__DATABASE__URL=url,
        REQUESTS_CA_BUNDLE="/" + "y" * 200,
        APPLITOOLS_API_KEY="",
    ).call("doctor")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\u202e" not in done.stdout


def test_no_secret_is_told(with_sqlite: Program, server: Faulty) -> None:
    server.answer = send(reply(b"", "500 Internal Server Error"))
    archiver = at(with_sqlite, server.url).given(
        APPLITOOLS_API_KEY="very-secret-key", RESULT_ARCHIVER__LOG__LEVEL="debug"
    )
    done = archiver.call("doctor")
    assert "very-secret-key" in server.requests[0].target
    assert "very-secret-key" not in done.stdout + done.stderr


# --- the list of broken set-ups, each really broken ---

Call = Callable[..., Done]


class Scene(NamedTuple):
    """The means of a broken set-up. `archiver` is the program with SQLite and the sandbox."""

    archiver: Program
    request: pytest.FixtureRequest

    @property
    def server(self) -> Server:
        """The PostgreSQL server."""
        server: Server = self.request.getfixturevalue("postgresql")
        return server

    @property
    def on_postgresql(self) -> Program:
        """The program with a new PostgreSQL database."""
        url = self.request.getfixturevalue("postgresql_url")
        return self.archiver.given(RESULT_ARCHIVER__DATABASE__URL=url)


Break = Callable[[Scene], AbstractContextManager[Call]]


class Fault(NamedTuple):
    """Parts of the one finding of a broken set-up, and the exit codes of doctor and of `ingest`."""

    subject: str
    reason: str
    problem: str
    remedy: str
    exit_code: int
    of_ingest: int


def with_variables(**variables: str) -> Break:
    """Break a set-up by variables; {folder} and {port}, which nobody serves, are filled in."""

    @contextmanager
    def broken(scene: Scene) -> Iterator[Call]:
        filled = {
            name: value.format(folder=scene.archiver.folder, port=free_port())
            for name, value in variables.items()
        }
        yield scene.archiver.given(**filled).wired(HASTY).call

    return broken


def with_file(name: str, content: str, **variables: str) -> Break:
    """Break a set-up by a file and the variables that name it."""

    @contextmanager
    def broken(scene: Scene) -> Iterator[Call]:
        scene.archiver.write(name, content)
        with with_variables(**variables)(scene) as call:
            yield call

    return broken


HASTY = Wiring(pauses=Pauses(0.01))
ELSEWHERE = "https://api.example.com"


def with_answer(answer: bytes, variable: str = "RESULT_ARCHIVER__API__BASE_URL") -> Break:
    """Break a set-up by a server that gives one answer to all requests."""

    @contextmanager
    def broken(scene: Scene) -> Iterator[Call]:
        with faulty.serving() as server:
            server.answer = send(answer)
            given = {"RESULT_ARCHIVER__API__BASE_URL": ELSEWHERE, variable: server.url}
            yield scene.archiver.given(**given).wired(HASTY).call

    return broken


@contextmanager
def without_permission(scene: Scene) -> Iterator[Call]:
    archiver = scene.archiver.given(APPLITOOLS_API_KEY=EXECUTE_KEY)
    archiver.call("track", *RUN_IDS)
    yield archiver.wired(HASTY).call


@contextmanager
def without_the_token_key(scene: Scene) -> Iterator[Call]:
    scene.archiver.write("tokens.csv", "run_id,read_token\nr1,token-1\n")
    scene.archiver.call("track", "--from", "tokens.csv")
    [key_file] = (scene.archiver.folder / "home").rglob("token.key")
    key_file.unlink()
    yield scene.archiver.call


@contextmanager
def with_another_token_key(scene: Scene) -> Iterator[Call]:
    with without_the_token_key(scene) as call:
        key_file = scene.archiver.folder / "home/.config/result-archiver/token.key"
        key_file.write_bytes(Fernet.generate_key())
        key_file.chmod(0o600)
        yield call


@contextmanager
def without_a_name_server(scene: Scene) -> Iterator[Call]:
    """A process of its own: names are not resolved within the tests' process."""
    yield scene.archiver.given(
        RESULT_ARCHIVER__API__BASE_URL="https://archive.invalid",
        RESULT_ARCHIVER__API__ATTEMPTS="1",
        RES_OPTIONS="timeout:1 attempts:1",
    ).run


@contextmanager
def with_a_wrong_clock(scene: Scene) -> Iterator[Call]:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    answer = reply(result().body, "200 OK", f"Date: {date}")
    with with_answer(answer)(scene) as call:
        call("ingest", "r1")
        yield call


def in_closed(*names: str) -> Break:
    """Break a set-up by an archive whose files or folder cannot be written."""

    @contextmanager
    def broken(scene: Scene) -> Iterator[Call]:
        folder = scene.archiver.folder / "closed"
        folder.mkdir()
        url = f"sqlite:///{folder}/archive.db"
        archiver = scene.archiver.given(RESULT_ARCHIVER__DATABASE__URL=url)
        archiver.call("ingest")
        for name in names:
            (folder / name).chmod(0o555)
        yield partial(archiver.run_by, HARMLESS)

    return broken


@contextmanager
def on_a_full_disk(scene: Scene) -> Iterator[Call]:
    """Files may not grow beyond 512 KB: a full disk that anybody can have."""
    yield partial(scene.archiver.run_by, ("sh", "-c", 'ulimit -f 1000; exec "$@"', "sh"))


@contextmanager
def without_right_to_create(scene: Scene) -> Iterator[Program]:
    with scene.server.database(owner=ADMIN) as url:
        yield scene.archiver.given(RESULT_ARCHIVER__DATABASE__URL=url)


@contextmanager
def without_right_to_write(scene: Scene) -> Iterator[Program]:
    archiver = scene.on_postgresql
    archiver.call("ingest")
    url = archiver.environment["RESULT_ARCHIVER__DATABASE__URL"]
    with scene.server.administer(make_url(url).database or "") as admin:
        for table in ("ingests", "runs"):
            admin.execute(sql.SQL("ALTER TABLE {} OWNER TO postgres").format(sql.Identifier(table)))
        admin.execute(sql.SQL("GRANT SELECT ON runs TO {}").format(sql.Identifier(ROLE)))
    yield archiver


def calling(setup: Callable[[Scene], AbstractContextManager[Program]]) -> Break:
    @contextmanager
    def broken(scene: Scene) -> Iterator[Call]:
        with setup(scene) as archiver:
            yield archiver.call

    return broken


@contextmanager
def in_latin1(scene: Scene) -> Iterator[Call]:
    with scene.server.database(options=IN_ENCODING.format("LATIN1")) as url:
        yield scene.archiver.given(RESULT_ARCHIVER__DATABASE__URL=url).call


def at_revision(revision: str) -> Break:
    @contextmanager
    def broken(scene: Scene) -> Iterator[Call]:
        archiver = scene.on_postgresql
        archiver.call("ingest")
        engine = database.connect(archiver.environment["RESULT_ARCHIVER__DATABASE__URL"])
        with database.writing(engine) as connection:
            connection.execute(
                text(f"UPDATE result_archiver_version SET version_num = '{revision}'")
            )
        engine.dispose()
        yield archiver.call

    return broken


def with_objects(*statements: str) -> Break:
    """Break a set-up by objects of another program in a PostgreSQL database."""

    @contextmanager
    def broken(scene: Scene) -> Iterator[Call]:
        archiver = scene.on_postgresql
        name = make_url(archiver.environment[DATABASE_URL]).database or ""
        with scene.server.administer(name) as admin:
            for statement in statements:
                admin.execute(statement.encode())
        yield archiver.call

    return broken


@contextmanager
def in_a_foreign_file(scene: Scene) -> Iterator[Call]:
    with closing(sqlite3.connect(scene.archiver.folder / "archive.db")) as file:
        file.execute("CREATE TABLE tests (subject TEXT, mark INTEGER)")
    yield scene.archiver.call


def with_another_setting(variable: str, value: str) -> Break:
    """Break a set-up by a setting that is not the one that stored rows were derived with."""

    @contextmanager
    def broken(scene: Scene) -> Iterator[Call]:
        scene.archiver.call("ingest")
        yield scene.archiver.given(**{variable: value}).call

    return broken


@contextmanager
def with_the_port_taken(scene: Scene) -> Iterator[Call]:
    with faulty.serving() as other:
        port = str(other.port)
        yield scene.archiver.given(RESULT_ARCHIVER__TELEMETRY__METRICS_PORT=port).call


BUNDLE = "REQUESTS_CA_BUNDLE"
BASE_URL, METRICS_FILE = (
    "RESULT_ARCHIVER__API__BASE_URL",
    "RESULT_ARCHIVER__TELEMETRY__METRICS_FILE",
)
DATABASE_URL = "RESULT_ARCHIVER__DATABASE__URL"
PING_URL = "RESULT_ARCHIVER__TELEMETRY__PING_URL"
PROXY = "the proxy 127.0.0.1:"
SOURCE = "source default"

FAULTS: dict[str, tuple[Break, Fault]] = {
    "no key": (
        with_variables(APPLITOOLS_API_KEY=""),
        Fault(SOURCE, "bad_setting", "has no API key", "set APPLITOOLS_API_KEY", 2, 2),
    ),
    "refused key": (
        with_variables(APPLITOOLS_API_KEY="unknown-key"),
        Fault(SOURCE, "key_refused", "refuses the key (401)", "set the right key", 3, 3),
    ),
    "no read permission": (
        without_permission,
        Fault(SOURCE, "no_permission", "6 due runs have no read token", "read token", 3, 3),
    ),
    "token key missing": (
        without_the_token_key,
        Fault("token key", "token_key_missing", "token.key does not exist", "bring the file", 2, 2),
    ),
    "token key of another archive": (
        with_another_token_key,
        Fault("token key", "bad_setting", "has another key", "bring that key back", 2, 2),
    ),
    "proxy dead": (
        with_variables(HTTPS_PROXY="http://u:s3cret@127.0.0.1:{port}", **{BASE_URL: ELSEWHERE}),
        Fault(SOURCE, "no_answer", "of HTTPS_PROXY refuses", "correct HTTPS_PROXY", 5, 5),
    ),
    "proxy asks for a password": (
        with_answer(reply(b"", "407 Proxy Authentication Required"), "HTTPS_PROXY"),
        Fault(SOURCE, "no_answer", "asks for a user and password (407)", "USER:PASSWORD@", 5, 5),
    ),
    "SOCKS proxy": (
        with_variables(ALL_PROXY="socks5h://127.0.0.1:{port}", **{BASE_URL: ELSEWHERE}),
        Fault(SOURCE, "bad_setting", "ALL_PROXY names the proxy", "install PySocks", 2, 2),
    ),
    "CA bundle missing": (
        with_variables(**{BUNDLE: "{folder}/none.pem", BASE_URL: ELSEWHERE}),
        Fault(SOURCE, "bad_setting", f"{BUNDLE}: ", "correct or unset the variable", 2, 2),
    ),
    "CA bundle of no certificates": (
        with_file("ca.pem", "no PEM", **{BUNDLE: "{folder}/ca.pem", BASE_URL: ELSEWHERE}),
        Fault(SOURCE, "bad_setting", "has no certificates in PEM", "correct or unset", 2, 2),
    ),
    "name not resolved": (
        without_a_name_server,
        Fault(SOURCE, "no_answer", "the name of archive.invalid cannot be", "DNS", 5, 5),
    ),
    "nothing at base_url": (
        with_variables(**{BASE_URL: "http://127.0.0.1:{port}"}),
        Fault(SOURCE, "no_answer", "refuses connections", "check base_url and its port", 5, 5),
    ),
    "HTML of another product": (
        with_answer(reply(LOGIN_PAGE, "200 OK", "Content-Type: text/html")),
        Fault(SOURCE, "not_the_api", "no result of the API", "check base_url", 5, 5),
    ),
    "JSON of another product": (
        with_answer(reply(b'{"status": "up"}')),
        Fault(SOURCE, "not_the_api", "no result of the API", "check base_url", 5, 5),
    ),
    "clock wrong": (
        with_a_wrong_clock,
        Fault(f"{SOURCE} clock", "clock_skew", "differs by 3", "set this machine's clock", 1, 0),
    ),
    "read-only folder": (
        in_closed("."),
        Fault("database", "database_no_rights", "no file can be written", "writable", 4, 4),
    ),
    "read-only file": (
        in_closed("archive.db"),
        Fault("database", "database_no_rights", "cannot be written", "make it writable", 4, 4),
    ),
    "no right to create": (
        calling(without_right_to_create),
        Fault("database", "database_no_rights", "permission denied", "GRANT CREATE ON", 4, 4),
    ),
    "no right to write": (
        calling(without_right_to_write),
        Fault("database", "database_no_rights", "lacks rights", "INSERT, UPDATE, DELETE", 4, 4),
    ),
    "table of another program": (
        with_objects("CREATE TABLE runs (distance int)"),
        Fault("database", "database_foreign", "has runs of another", "one for the archive", 4, 4),
    ),
    "view of another program": (
        with_objects(
            f"CREATE SCHEMA reporting AUTHORIZATION {ROLE}",
            "CREATE VIEW reporting.calendar AS SELECT 1 AS day",
        ),
        Fault("database", "database_foreign", "has calendar", "database.reporting_schema", 4, 4),
    ),
    "file of another program": (
        in_a_foreign_file,
        Fault("database", "database_foreign", "has tests of another", "another file", 4, 4),
    ),
    "time zone changed": (
        with_another_setting("RESULT_ARCHIVER__REPORTING__TIME_ZONE", "Asia/Tokyo"),
        Fault("settings", "settings_differ", "reporting.time_zone is 'Asia/Tokyo'", "replay", 1, 0),
    ),
    "threshold changed": (
        with_another_setting("RESULT_ARCHIVER__REPORTING__FLAKY_MIN_FLIPS", "3"),
        Fault("settings", "settings_differ", "reporting.flaky_min_flips is '3'", "replay", 1, 0),
    ),
    "wrong encoding": (
        in_latin1,
        Fault("database", "database_encoding", "its encoding is LATIN1", "ENCODING 'UTF8'", 4, 4),
    ),
    "database unreachable": (
        with_variables(**{DATABASE_URL: "postgresql://u:s3cret@127.0.0.1:{port}/archive"}),
        Fault("database", "database_unavailable", "refused", "check database.url", 4, 4),
    ),
    "disk full": (
        on_a_full_disk,
        Fault("database", "database_out_of_resources", "no room for", "make room", 4, 4),
    ),
    "list missing": (
        with_file("config.toml", '[runs]\nsources = ["runs.tx"]\n'),
        Fault("run list", "list_missing", "runs.tx: there is no such file", "correct", 1, 0),
    ),
    "migration behind": (
        at_revision("0001"),
        Fault("database", "database_behind", "at revision 0001", "db upgrade", 4, 4),
    ),
    "version ahead": (
        at_revision("9999"),
        Fault("database", "database_ahead", "newer than this version", "install the newer", 4, 4),
    ),
    "metrics port taken": (
        with_the_port_taken,
        Fault("metrics port", "port_taken", "Address already in use", "set another port", 2, 0),
    ),
    "metrics folder not writable": (
        with_file("taken", "a file", **{METRICS_FILE: "{folder}/taken/m.prom"}),
        Fault("metrics file", "file_not_writable", "m.prom cannot be written", "let this", 1, 0),
    ),
    "ping URL unreachable": (
        with_variables(**{PING_URL: "http://127.0.0.1:{port}/s3cret-uuid"}),
        Fault("ping URL", "failed", "refuses connections", "check telemetry.ping_url", 1, 0),
    ),
}


@pytest.mark.parametrize(("broken", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_doctor_names_cause_and_remedy_of(
    with_sqlite: Program, request: pytest.FixtureRequest, broken: Break, fault: Fault
) -> None:
    with broken(Scene(with_sqlite, request)) as call:
        done = call("doctor", "--json")
        of_ingest = call("ingest", *RUN_IDS)
    [(subject, finding)] = [each for each in found_in(done).items() if each[1]["problem"]]
    assert (subject, finding["reason"]) == (fault.subject, fault.reason)
    assert fault.problem in finding["problem"]
    assert fault.remedy in finding["remedy"]
    assert (finding["exit_code"], done.exit_code) == (fault.exit_code, fault.exit_code)
    assert of_ingest.exit_code == fault.of_ingest, of_ingest.stderr
    assert "s3cret" not in done.stdout + done.stderr + of_ingest.stderr
    assert "Traceback" not in done.stderr + of_ingest.stderr


@pytest.mark.parametrize("setup", [without_right_to_create, without_right_to_write])
def test_the_grants_that_doctor_names_are_all_that_is_missing(
    with_sqlite: Program,
    request: pytest.FixtureRequest,
    setup: Callable[[Scene], AbstractContextManager[Program]],
) -> None:
    scene = Scene(with_sqlite, request)
    with setup(scene) as archiver:
        of_ingest = archiver.call("ingest")
        remedy = findings(archiver)["database"]["remedy"]
        statements = remedy.removeprefix("have an administrator run in this database: ")
        assert statements in of_ingest.stderr
        name = make_url(archiver.environment[DATABASE_URL]).database or ""
        with scene.server.administer(name) as admin:
            admin.execute(statements.encode())
        assert problems(archiver) == {}
        assert archiver.call("ingest").exit_code == 0


def test_a_pooler_is_no_problem(
    with_sqlite: Program, postgresql_url: str, postgresql: Server
) -> None:
    with pooled(postgresql, postgresql_url) as url:
        archiver = with_sqlite.given(**{DATABASE_URL: url})
        assert archiver.call("ingest", *RUN_IDS).exit_code == 0
        assert {each["reason"] for each in findings(archiver).values()} == {"ok"}


def test_a_port_that_our_own_service_has_is_no_problem(with_sqlite: Program) -> None:
    archiver = with_sqlite.given(RESULT_ARCHIVER__TELEMETRY__METRICS_PORT=str(free_port()))
    with archiver.started("schedule"):
        wait_for(int(archiver.environment["RESULT_ARCHIVER__TELEMETRY__METRICS_PORT"]))
        assert findings(archiver)["metrics port"]["state"].endswith("by a running service")


def test_a_ping_url_is_not_pinged_by_looking(with_sqlite: Program, server: Faulty) -> None:
    server.answer = send(reply(b"", "404 Not Found"))
    archiver = with_sqlite.given(**{PING_URL: f"{server.url}/s3cret-uuid"})
    assert findings(archiver)["ping URL"]["state"] == f"127.0.0.1:{server.port} answers"
    assert [(each.method, each.target) for each in server.requests] == [("HEAD", "/")]


@pytest.mark.parametrize("url", ["no URL", "ftp://127.0.0.1/x", "https://", "http://["])
def test_a_ping_url_that_is_none(with_sqlite: Program, url: str) -> None:
    [(problem, _remedy, exit_code)] = problems(with_sqlite.given(**{PING_URL: url})).values()
    assert (problem, exit_code) == ("telemetry.ping_url is not a URL", 1)


def test_doctor_changes_nothing(with_sqlite: Program) -> None:
    archiver = with_sqlite.given(**{METRICS_FILE: str(with_sqlite.folder / "m/m.prom")})
    before = sorted(with_sqlite.folder.rglob("*"))
    assert archiver.call("doctor").exit_code == 0
    assert sorted(with_sqlite.folder.rglob("*")) == before
