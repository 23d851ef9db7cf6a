"""`doctor` tells apart what can be wrong, each with its remedy and exit code."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text

from etl.db import database
from etl.sandbox.api import EXECUTE_KEY
from etl.sandbox.server import Sandbox, running
from etl.sandbox.world import World
from etl.sandbox.world_clock import Clock
from tests.support import fake_api, faulty
from tests.support.fake_api import FakeApi, result
from tests.support.faulty import Faulty, reply, send
from tests.support.postgres import free_port
from tests.support.program import Program, program

END = datetime(2026, 1, 15, 12, tzinfo=UTC)
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
    """Return what `doctor --json` found, by its subject; the first problem is the exit code."""
    done = archiver.call("doctor", "--json")
    found = {finding.pop("subject"): finding for finding in done.json()}
    codes = [finding["exit_code"] for finding in found.values() if finding["exit_code"]]
    assert done.exit_code == (codes[0] if codes else 0)
    return found


def problems(archiver: Program) -> dict[str, tuple[str, str, int]]:
    """Return verdict, remedy and exit code of all that is a problem, by its subject."""
    return {
        subject: (finding["verdict"], finding["remedy"], finding["exit_code"])
        for subject, finding in findings(archiver).items()
        if finding["exit_code"]
    }


def test_all_is_well(archiver: Program, sandbox: Sandbox) -> None:
    archiver.call("ingest", next(sandbox.world.runs(END)).run_id)
    done = archiver.call("doctor")
    assert done.exit_code == 0
    kinds = {line.split()[0] for line in done.stdout.splitlines()}
    assert kinds == {"ok"}
    for line in ("is up to date", "source default: the key is accepted, and reads results",
                 "source default clock: agrees with this machine's"):  # fmt: skip
        assert line in done.stdout


def test_a_new_database_is_no_problem_and_is_not_made_by_looking(archiver: Program) -> None:
    found = findings(archiver)["database"]
    assert found["verdict"].endswith("is new")
    assert (found["remedy"], found["exit_code"]) == (
        "nothing to do: the first ingest makes the tables",
        0,
    )
    assert not Path("archive.db").exists()


def test_a_new_database_that_could_not_be_made(with_sqlite: Program) -> None:
    with_sqlite.write("taken", "a file, not a folder")
    taken = with_sqlite.folder / "taken"
    url = f"sqlite:///{taken}/results.db"
    assert problems(with_sqlite.given(RESULT_ARCHIVER__DATABASE__URL=url)) == {
        "database": (
            f"{taken}/results.db: {taken} cannot be written to",
            "make its folder, or change database.url",
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
        "verdict": "the key is accepted, but has no read permission (403)",
        "remedy": "track each run with its read token, or ask for a key that may read",
        "exit_code": 0,
    }


def test_an_api_that_cannot_be_reached(with_sqlite: Program) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    [(verdict, remedy, exit_code)] = problems(at(with_sqlite, url)).values()
    assert verdict == f"{url}: {url.removeprefix('http://')} cannot be reached"
    assert remedy == "check base_url, the network, and the proxy settings"
    assert exit_code == 5


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (reply(b"", "500 Internal Server Error"), "the API answered 500"),
        (reply(b"", "302 Found", "Location: /login"), "the API answered 302"),
        (reply(b"", "400 Bad Request"), "the API answered 400"),
        (reply(LOGIN_PAGE, "200 OK", "Content-Type: text/html"), "what answered is not the API"),
        (reply(b'{"status": "up"}'), "what answered is not the API"),
    ],
)
def test_something_else_than_the_api(
    with_sqlite: Program, server: Faulty, answer: bytes, verdict: str
) -> None:
    server.answer = send(answer)
    found = problems(at(with_sqlite, server.url))
    assert found["source default"][0].startswith(verdict)
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
        assert found == {"verdict": "can be used", "remedy": "", "exit_code": 0}
    else:
        assert found["verdict"] == f"security.token_key_file: {key_file} can be read by others"
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


def test_several_problems_are_all_told_and_the_first_is_the_exit_code(
    with_sqlite: Program,
) -> None:
    with_sqlite.write("archive.db", "no database " * 100)
    done = with_sqlite.given(APPLITOOLS_API_KEY="unknown-key").call("doctor")
    assert done.exit_code == 4
    marks = [line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert marks.count("problem") == 2


def test_no_secret_is_told(with_sqlite: Program, server: Faulty) -> None:
    server.answer = send(reply(b"", "500 Internal Server Error"))
    archiver = at(with_sqlite, server.url).given(
        APPLITOOLS_API_KEY="very-secret-key", RESULT_ARCHIVER__LOG__LEVEL="debug"
    )
    done = archiver.call("doctor")
    assert "very-secret-key" in server.requests[0].target
    assert "very-secret-key" not in done.stdout + done.stderr
