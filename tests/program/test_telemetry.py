"""What Prometheus and a dead man's switch are told, and that telling it never costs a pass."""

import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from psycopg import sql
from sqlalchemy import Engine, make_url, text, update

from etl import clock
from etl.config.settings import Telemetry
from etl.db import database
from etl.db.schema import tracked_runs
from etl.errors import UsageError
from etl.telemetry import prometheus
from etl.telemetry.ping import ping
from tests.support import fake_api, faulty
from tests.support.fake_api import FakeApi, result
from tests.support.faulty import Faulty, reply, send
from tests.support.postgres import Server, free_port
from tests.support.program import Program, program

SECRET = "b6f0c1de-ping"
ALL_METRICS = {
    "result_archiver_database_up",
    "result_archiver_runs",
    "result_archiver_failed_runs",
    "result_archiver_overdue_runs",
    "result_archiver_passes_missed_total",
    "result_archiver_due_runs",
    "result_archiver_oldest_due_age_seconds",
    "result_archiver_passes_total",
    "result_archiver_outcomes_total",
    "result_archiver_last_pass_timestamp_seconds",
    "result_archiver_last_success_timestamp_seconds",
}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with fake_api.serving() as api:
        api.other = result()
        yield api


@pytest.fixture
def recorder() -> Iterator[Faulty]:
    """A dead man's switch; it records what it is asked."""
    with faulty.serving() as server:
        yield server


@pytest.fixture
def archiver(tmp_path: Path, database_url: str, api: FakeApi) -> Program:
    return program(tmp_path, database_url, api.url).given(RESULT_ARCHIVER__API__ATTEMPTS="1")


@pytest.fixture
def sqlite_archiver(tmp_path: Path, sqlite_url: str, api: FakeApi) -> Program:
    return program(tmp_path, sqlite_url, api.url).given(RESULT_ARCHIVER__API__ATTEMPTS="1")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.connect(database_url)
    yield engine
    engine.dispose()


def pinging(archiver: Program, url: str) -> Program:
    return archiver.given(
        RESULT_ARCHIVER__TELEMETRY__PING_URL=url, RESULT_ARCHIVER__TELEMETRY__PING_TIMEOUT_S="0.3"
    )


def values(exposed: str) -> dict[str, float]:
    """Return the samples of a metrics page, by name and labels."""
    samples = [line.rsplit(" ", 1) for line in exposed.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in samples}


def read(engine: Engine) -> dict[str, float]:
    return values(generate_latest(prometheus.make_registry(engine, clock.now)).decode())


def names(found: dict[str, float]) -> set[str]:
    return {name.partition("{")[0] for name in found}


# --- what is measured ---


def test_every_metric_is_there_with_its_meaning(archiver: Program, engine: Engine) -> None:
    archiver.call("ingest", "r1")
    exposed = generate_latest(prometheus.make_registry(engine, clock.now)).decode()
    assert names(values(exposed)) == ALL_METRICS
    assert set(re.findall(r"^# HELP (\w+) .+\.$", exposed, re.MULTILINE)) == ALL_METRICS


def test_runs_and_outcomes_are_counted(archiver: Program, engine: Engine, api: FakeApi) -> None:
    api.answers["gone"] = [fake_api.NOT_FOUND]
    archiver.call("ingest", "r1", "r2", "gone")
    archiver.call("track", "r3")
    found = read(engine)
    assert found["result_archiver_database_up"] == 1
    assert found['result_archiver_outcomes_total{outcome="new"}'] == 2
    assert found['result_archiver_outcomes_total{outcome="failed"}'] == 1
    assert found['result_archiver_runs{source="default",state="queued"}'] == 1
    assert found['result_archiver_runs{source="default",state="failed"}'] == 1
    assert found['result_archiver_failed_runs{reason="not_found",source="default"}'] == 1
    assert found["result_archiver_due_runs"] == 1
    assert found["result_archiver_passes_total"] == 1


def test_the_age_of_what_waits_is_that_of_the_run_that_is_due_longest(
    archiver: Program, engine: Engine
) -> None:
    archiver.call("ingest")
    assert read(engine)["result_archiver_oldest_due_age_seconds"] == 0
    archiver.call("track", "r1")
    with database.writing(engine) as connection:
        connection.execute(update(tracked_runs).values(due_at=datetime(2020, 1, 1, tzinfo=UTC)))
    assert read(engine)["result_archiver_oldest_due_age_seconds"] > 86_400


def test_last_success_moves_only_on_success(
    archiver: Program, engine: Engine, api: FakeApi
) -> None:
    archiver.call("ingest", "r1")
    after_success = read(engine)
    api.answers["r2"] = [fake_api.NOT_FOUND]
    assert archiver.call("ingest", "r2").exit_code == 1
    after_failure = read(engine)
    success, ended = (
        f"result_archiver_last_{name}_timestamp_seconds" for name in ("success", "pass")
    )
    assert after_success[success] == after_success[ended] == pytest.approx(time.time(), abs=60)
    assert after_failure[success] == after_success[success]
    assert after_failure[ended] > after_success[ended]


def test_a_pass_with_a_bad_line_in_a_watched_list_is_no_success(
    archiver: Program, engine: Engine
) -> None:
    archiver.write("runs.txt", "r1\n..\n")
    watching = archiver.given(RESULT_ARCHIVER__RUNS__SOURCES="runs.txt")
    assert watching.call("ingest").exit_code == 1
    found = read(engine)
    assert found['result_archiver_outcomes_total{outcome="new"}'] == 1
    assert found["result_archiver_last_success_timestamp_seconds"] == 0


# --- the text file ---


def test_each_pass_replaces_the_text_file_as_a_whole(sqlite_archiver: Program) -> None:
    file = sqlite_archiver.folder / "metrics" / "archiver.prom"
    archiver = sqlite_archiver.given(RESULT_ARCHIVER__TELEMETRY__METRICS_FILE=str(file))
    archiver.call("ingest", "r1")
    with file.open() as a_reader_s:
        archiver.call("ingest", "r2")
        old, new = values(a_reader_s.read()), values(file.read_text())
    assert names(old) == names(new) == ALL_METRICS
    assert [found["result_archiver_passes_total"] for found in (old, new)] == [1, 2]
    assert list(file.parent.iterdir()) == [file]


def test_the_text_file_tells_of_a_pass_that_failed(sqlite_archiver: Program, api: FakeApi) -> None:
    archiver = sqlite_archiver.given(RESULT_ARCHIVER__TELEMETRY__METRICS_FILE="archiver.prom")
    api.other = fake_api.Answer(status=401)
    assert archiver.call("ingest", "r1").exit_code == 3
    found = values((archiver.folder / "archiver.prom").read_text())
    assert found["result_archiver_passes_total"] == 1
    assert found["result_archiver_last_success_timestamp_seconds"] == 0


def test_a_text_file_that_cannot_be_written_only_warns(sqlite_archiver: Program) -> None:
    sqlite_archiver.write("file", "")
    done = sqlite_archiver.given(RESULT_ARCHIVER__TELEMETRY__METRICS_FILE="file/a.prom").call(
        "ingest", "r1"
    )
    assert done.exit_code == 0
    assert "metrics file not written" in done.stderr


# --- the endpoint ---


def fetch(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        return values(response.read().decode())


def test_the_endpoint_serves_the_metrics(archiver: Program, engine: Engine) -> None:
    archiver.call("ingest", "r1")
    port = free_port()
    prometheus.serve_metrics(engine, clock.now, Telemetry(metrics_port=port))
    assert names(fetch(port)) == ALL_METRICS


def test_the_endpoint_tells_that_postgresql_went_away_and_came_back(
    tmp_path: Path, api: FakeApi, postgresql: Server, postgresql_url: str
) -> None:
    program(tmp_path, postgresql_url, api.url).call("ingest", "r1")
    name = make_url(postgresql_url).database or ""
    engine = database.connect(postgresql_url)
    port = free_port()
    prometheus.serve_metrics(engine, clock.now, Telemetry(metrics_port=port))
    found = [fetch(port)]
    for is_there in (False, True):
        with postgresql.administer() as connection:
            connection.execute(
                sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(
                    sql.Identifier(name), sql.Literal(is_there)
                )
            )
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )
        found.append(fetch(port))
    engine.dispose()
    assert [page["result_archiver_database_up"] for page in found] == [1, 0, 1]
    assert names(found[1]) == {"result_archiver_database_up"}


def test_an_archive_that_is_no_database_is_a_database_that_is_down(sqlite_url: str) -> None:
    Path("archive.db").write_bytes(b"no database " * 100)
    engine = database.connect(sqlite_url)
    assert read(engine) == {"result_archiver_database_up": 0}
    engine.dispose()


def test_a_port_that_is_taken_is_told_in_one_line(sqlite_url: str, api: FakeApi) -> None:
    engine = database.connect(sqlite_url)
    port = int(api.url.rpartition(":")[2])
    with pytest.raises(UsageError, match=rf"^telemetry\.metrics_port: 127\.0\.0\.1:{port} .*use$"):
        prometheus.serve_metrics(engine, clock.now, Telemetry(metrics_port=port))


# --- pings ---


def test_a_good_pass_pings_start_and_success(sqlite_archiver: Program, recorder: Faulty) -> None:
    done = pinging(sqlite_archiver, f"{recorder.url}/{SECRET}").call("ingest", "r1")
    assert done.exit_code == 0
    assert [request.target for request in recorder.requests] == [f"/{SECRET}/start", f"/{SECRET}"]


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_bad_pass_pings_start_and_failure(
    sqlite_archiver: Program, recorder: Faulty, api: FakeApi, status: int
) -> None:
    api.other = fake_api.Answer(status=status)
    done = pinging(sqlite_archiver, f"{recorder.url}/{SECRET}/").call("ingest", "r1")
    assert done.exit_code != 0
    targets = [request.target for request in recorder.requests]
    assert targets == [f"/{SECRET}/start", f"/{SECRET}/fail"]


def test_a_pass_that_could_not_finish_its_counting_pings_failure(
    sqlite_archiver: Program, recorder: Faulty, sqlite_url: str
) -> None:
    archiver = pinging(sqlite_archiver, f"{recorder.url}/{SECRET}")
    assert archiver.call("db", "upgrade").exit_code == 0
    engine = database.connect(sqlite_url)
    with database.writing(engine) as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON daily_results"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    engine.dispose()
    # Two runs of one plan are marked, and counted at the end of the pass.
    assert archiver.call("ingest", "r1", "r2").exit_code == 4
    targets = [request.target for request in recorder.requests]
    assert targets == [f"/{SECRET}/start", f"/{SECRET}/fail"]


def test_a_pass_without_its_database_pings_failure(
    sqlite_archiver: Program, recorder: Faulty
) -> None:
    archiver = pinging(sqlite_archiver, f"{recorder.url}/{SECRET}").given(
        RESULT_ARCHIVER__RUNS__SOURCES="*.txt"
    )
    archiver.call("ingest", "r1")
    recorder.requests.clear()
    engine = database.connect(archiver.environment["RESULT_ARCHIVER__DATABASE__URL"])
    with database.writing(engine) as connection:
        connection.execute(text("ALTER TABLE ingests RENAME TO away"))
    engine.dispose()
    assert archiver.call("ingest").exit_code == 4
    targets = [request.target for request in recorder.requests]
    assert targets == [f"/{SECRET}/start", f"/{SECRET}/fail"]


def dead(_server: Faulty) -> str:
    return f"http://127.0.0.1:{free_port()}"


def answering(answer: faulty.Answer) -> Callable[[Faulty], str]:
    def prepared(server: Faulty) -> str:
        server.answer = answer
        return server.url

    return prepared


TROUBLES: dict[str, Callable[[Faulty], str]] = {
    "dead": dead,
    "silent": answering(faulty.stall(b"")),
    "slow head": answering(faulty.drip(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.1)),
    "slow body": answering(faulty.drip(faulty.head("200 OK", "Content-Length: 9999"), b"x", 0.1)),
    "reset": answering(faulty.reset),
    "garbled": answering(send(b"HTTP/1.1 200 OK\r\nno header\r\n\r\n")),
    "moved": answering(send(reply(b"", "302 Found", "Location: http://127.0.0.1:1/"))),
    "failing": answering(send(reply(b"", "500 Internal Server Error"))),
    "no URL": lambda _server: "nowhere",
    "no host": lambda _server: "http://",
    "no IPv6": lambda _server: "http://[::1",
    "no port": lambda _server: "http://127.0.0.1:99999",
    "odd host": lambda _server: f"http://{'a' * 70}.example.com",
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_ping_in_trouble_costs_no_pass_little_time_and_no_secret(
    sqlite_archiver: Program, recorder: Faulty, trouble: str
) -> None:
    url = f"{TROUBLES[trouble](recorder)}/{SECRET}"
    archiver = pinging(sqlite_archiver, url).given(RESULT_ARCHIVER__LOG__LEVEL="debug")
    began_at = time.monotonic()
    done = archiver.call("ingest", "r1")
    assert time.monotonic() - began_at < 5  # two pings of 0.3 s each, and the pass itself
    assert (done.exit_code, "1 new" in done.stderr) == (0, True)
    assert SECRET not in done.stderr


@pytest.mark.parametrize("trouble", ["dead", "silent", "slow head", "moved", "failing", "no URL"])
def test_a_ping_that_did_not_arrive_is_told(
    sqlite_archiver: Program, recorder: Faulty, trouble: str
) -> None:
    url = f"{TROUBLES[trouble](recorder)}/{SECRET}"
    done = pinging(sqlite_archiver, url).call("ingest", "r1")
    assert done.stderr.count("ping not delivered") == 2


def test_a_ping_takes_no_longer_than_its_timeout(recorder: Faulty) -> None:
    url = TROUBLES["slow head"](recorder)
    began_at = time.monotonic()
    ping(Telemetry(ping_url=url, ping_timeout_s=0.3), "/start")
    assert time.monotonic() - began_at < 1
