"""When the service does its passes, and what it makes of passes that fail and of signals."""

import contextlib
import io
import json
import logging
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
import structlog
import time_machine
from apscheduler.events import (
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    EVENT_JOB_SUBMITTED,
    JobExecutionEvent,
    JobSubmissionEvent,
)
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import insert, text

from etl import clock
from etl.config.settings import Api, Config, Database, Log, Runs, Schedule, Security, Source
from etl.db import database
from etl.db.schema import ingests
from etl.errors import ConfigError, DatabaseError
from etl.ingest import service
from etl.ingest.context import IngestContext
from etl.ingest.interrupt import Interrupt
from etl.ingest.missed_passes import MissedPasses
from etl.ingest.triggers import make_trigger
from etl.sandbox.api import READ_KEY
from etl.sandbox.server import Sandbox, running
from etl.sandbox.world import World
from etl.sandbox.world_clock import Clock
from etl.telemetry import log, prometheus
from tests.support import fake_api
from tests.support.fake_api import result
from tests.support.postgres import free_port
from tests.support.program import Program, program

if TYPE_CHECKING:
    from subprocess import Popen

END = datetime(2026, 1, 15, 12, tzinfo=UTC)
PATIENCE_S = 20.0


# --- when: cron and interval ---


def fires(schedule: Schedule, start: datetime, end: datetime) -> list[datetime]:
    """Return when a pass comes between two moments, asked for as APScheduler asks: in UTC."""
    trigger = make_trigger(schedule)
    moments: list[datetime] = []
    moment = trigger.get_next_fire_time(None, start)
    while moment and moment.astimezone(UTC) < end:
        assert len(moments) < 1000
        moments.append(moment.astimezone(UTC))
        moment = trigger.get_next_fire_time(moment, moments[-1] + timedelta(milliseconds=5))
    return moments


def on(cron: str, zone: str, day: str) -> list[str]:
    """Return the wall clock times, with their offset, at which `cron` fires on one day."""
    midnight = datetime.fromisoformat(day).replace(tzinfo=UTC)
    found = fires(
        Schedule(cron=cron, time_zone=zone),
        midnight - timedelta(days=1),
        midnight + timedelta(days=2),
    )
    local = [moment.astimezone(ZoneInfo(zone)) for moment in found]
    return [f"{moment:%H:%M%z}" for moment in local if moment.date() == midnight.date()]


def test_an_interval_is_kept_to_the_second() -> None:
    start = datetime(2026, 3, 28, 23, 59, 30, tzinfo=UTC)
    with time_machine.travel(start, tick=False):
        found = fires(Schedule(every=timedelta(seconds=90)), start, start + timedelta(minutes=5))
    gaps = [moment - start for moment in found]
    assert gaps == [timedelta(seconds=90), timedelta(seconds=180), timedelta(seconds=270)]


def test_cron_wins_over_the_interval_and_means_the_zone_s_clock() -> None:
    assert on("15 6,18 * * *", "Asia/Kathmandu", "2026-05-04") == ["06:15+0545", "18:15+0545"]


# Each zone's day with an hour missing, and its day with an hour twice.
@pytest.mark.parametrize(
    ("zone", "day", "cron", "expected"),
    [
        ("Europe/Berlin", "2026-03-29", "30 1 * * *", "01:30+0100"),
        ("Europe/Berlin", "2026-03-29", "30 2 * * *", "03:30+0200"),
        ("Europe/Berlin", "2026-03-29", "0 3 * * *", "03:00+0200"),
        ("Europe/Berlin", "2026-10-25", "30 2 * * *", "02:30+0200"),
        ("Europe/Berlin", "2026-10-25", "30 2-2 * * *", "02:30+0200"),
        ("Europe/Berlin", "2026-10-25", "0 3 * * *", "03:00+0100"),
        ("America/New_York", "2026-03-08", "30 2 * * *", "03:30-0400"),
        ("America/New_York", "2026-11-01", "0 1 * * *", "01:00-0400"),
        ("America/New_York", "2026-11-01", "59 1 * * *", "01:59-0400"),
        ("Europe/Berlin", "2026-03-29", "30 2,3 * * *", "03:30+0200"),
        ("America/Havana", "2026-03-08", "0 0 * * *", "01:00-0400"),
        ("America/Havana", "2026-11-01", "0 0 * * *", "00:00-0400"),
    ],
)
def test_a_named_hour_fires_once_when_the_clocks_change(
    zone: str, day: str, cron: str, expected: str
) -> None:
    assert on(cron, zone, day) == [expected]


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
def test_each_of_several_named_hours_comes_when_the_clocks_change(day: str) -> None:
    times = on("0 1,2,5 * * *", "Europe/Berlin", day)
    left_out = day == "2026-03-29"
    assert [time[:5] for time in times] == ["01:00", "03:00" if left_out else "02:00", "05:00"]


def test_all_times_of_a_skipped_hour_come_an_hour_later() -> None:
    times = on("*/20 2 * * *", "Europe/Berlin", "2026-03-29")
    assert times == ["03:00+0200", "03:20+0200", "03:40+0200"]


def test_a_service_started_after_a_gap_does_what_the_gap_skipped() -> None:
    ten_past_three = datetime(2026, 3, 29, 1, 10, tzinfo=UTC)
    schedule = Schedule(cron="30 2 * * *", time_zone="Europe/Berlin")
    found = fires(schedule, ten_past_three, ten_past_three + timedelta(hours=12))
    assert found == [datetime(2026, 3, 29, 1, 30, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("America/New_York", "2026-03-08", 23),
        ("America/New_York", "2026-11-01", 25),
    ],
)
def test_every_half_hour_goes_on_while_the_clocks_change(zone: str, day: str, hours: int) -> None:
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    schedule = Schedule(cron="*/30 * * * *", time_zone=zone)
    found = fires(schedule, start, start + timedelta(hours=hours))
    assert found == [start + timedelta(minutes=30 * step) for step in range(2 * hours)]


def test_a_service_started_in_the_doubled_hour_misses_nothing_later_that_day() -> None:
    again_half_past_two = datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    schedule = Schedule(cron="30 5 * * *", time_zone="Europe/Berlin")
    found = fires(schedule, again_half_past_two, again_half_past_two + timedelta(days=1))
    assert found == [datetime(2026, 10, 25, 4, 30, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("field", "days"),
    [
        ("1-5", ["Mon", "Tue", "Wed", "Thu", "Fri"]),
        ("0", ["Sun"]),
        ("7", ["Sun"]),
        ("0,3", ["Wed", "Sun"]),
        ("5-7", ["Fri", "Sat", "Sun"]),
        ("0-2", ["Mon", "Tue", "Sun"]),
        ("mon-fri", ["Mon", "Tue", "Wed", "Thu", "Fri"]),
        ("FRI-SUN", ["Fri", "Sat", "Sun"]),
        ("*/2", ["Tue", "Thu", "Sat", "Sun"]),
        ("1-5/2", ["Mon", "Wed", "Fri"]),
        ("*", ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]),
    ],
)
def test_days_of_the_week_are_those_of_cron(field: str, days: list[str]) -> None:
    monday = datetime(2026, 5, 4, tzinfo=UTC)
    found = fires(Schedule(cron=f"0 12 * * {field}"), monday, monday + timedelta(days=7))
    assert [f"{moment:%a}" for moment in found] == days


def test_a_day_of_the_month_and_one_of_the_week_mean_either_as_in_cron() -> None:
    start = datetime(2026, 5, 1, tzinfo=UTC)  # a Friday
    found = fires(Schedule(cron="0 6 1,15 * 1"), start, start + timedelta(days=31))
    assert [moment.day for moment in found] == [1, 4, 11, 15, 18, 25]


@pytest.mark.parametrize(
    "cron",
    [
        "* * * *", "* * * * * *", "@daily", "every day at six o'clock", "61 * * * *",
        "*/0 * * * *", "5-1 * * * *", "* 24 * * *", "1,,2 * * * *", "0 0 0 * *", "0 0 * 13 *",
        "0 0 * * 8", "0 0 * * 1-", "0 0 * * fry", "0 0 * * 3-1", "0 0 * * 1/0", "0 0 30 2 *", " ",
    ],
)  # fmt: skip
def test_a_bad_cron_line_is_told_in_one_line_with_what_is_right(cron: str) -> None:
    with pytest.raises(ConfigError) as told:
        make_trigger(Schedule(cron=cron))
    message = str(told.value)
    assert message.startswith(f"schedule.cron is {cron!r}: ")
    assert message.endswith("; give five fields such as '*/15 * * * *'")
    assert "\n" not in message


def test_the_command_refuses_a_bad_cron_line(tmp_path: Path, sqlite_url: str) -> None:
    archiver = program(tmp_path, sqlite_url, "http://127.0.0.1:1")
    done = archiver.given(RESULT_ARCHIVER__SCHEDULE__CRON="0 0 * * 9").call("schedule")
    assert done.exit_code == 2
    assert done.stderr == (
        "error: schedule.cron is '0 0 * * 9': Bad day-of-week; give five fields such as"
        " '*/15 * * * *'\n"
    )


# --- the service, in a thread ---


class Service:
    """A service that runs in a thread of this process; `rows` is what its passes recorded."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.engine = database.connect(config.database.url)
        self._interrupt = Interrupt()
        ingest = IngestContext(self.engine, config, clock.now)
        self._thread = threading.Thread(target=service.serve, args=[ingest, self._interrupt])

    @contextlib.contextmanager
    def running(self) -> Iterator["Service"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._interrupt.set(signal.SIGTERM)
            self._thread.join()
            self.engine.dispose()

    def rows(self, statement: str = "SELECT trigger, exit_code FROM ingests ORDER BY id") -> Any:
        try:
            with database.reading(self.engine) as connection:
                return [tuple(row) for row in connection.execute(text(statement))]
        except DatabaseError:  # no table yet
            return []

    def passes(self) -> list[int]:
        """Return the exit codes of the passes that are over."""
        return [code for _trigger, code in self.rows() if code is not None]

    def execute(self, statement: str) -> None:
        with database.writing(self.engine) as connection:
            connection.execute(text(statement))


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A small world whose clock stands still, at a time when all of its runs are over."""
    with running(World(end=END, runs=40), Clock(END + timedelta(days=60), speed=0)) as sandbox:
        yield sandbox


@pytest.fixture
def config(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A service that does a pass each second. Tests point `sources` at an API."""
    monkeypatch.setenv("APPLITOOLS_API_KEY", READ_KEY)
    return Config(
        sources={},
        database=Database(database_url),
        api=Api(attempts=1, max_requests_per_second=0),
        runs=Runs([str(tmp_path / "runs" / "*.txt")]),
        schedule=Schedule(every=timedelta(seconds=1)),
        security=Security(str(tmp_path / "token.key")),
    )


def asking(config: Config, url: str) -> Config:
    return msgspec.structs.replace(config, sources={"default": Source(url, "APPLITOOLS_API_KEY")})


@pytest.fixture
def run_list(tmp_path: Path) -> Callable[[str, str], None]:
    """Put a list where the service watches for it, whole and at once."""

    def put(name: str, content: str) -> None:
        folder = tmp_path / "runs"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.new").write_text(content)
        (folder / f"{name}.new").rename(folder / name)

    return put


@pytest.fixture
def logged() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Return what was logged so far."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    with contextlib.redirect_stderr(stream):
        log.configure(Log(format="json"))
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def events(logged: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in logged if line["event"] == event]


def run_ids(sandbox: Sandbox) -> list[str]:
    return [run.run_id for run in sandbox.world.runs(END)]


def as_moment(value: Any) -> datetime:
    """Return a time as the database gives it to a plain query."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def until(condition: Callable[[], Any]) -> Any:
    """Wait for `condition` to hold, and return what it gave."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < give_up_at, "it did not come about"
        time.sleep(0.02)
    return found


def test_a_pass_comes_at_once_and_then_at_each_interval(config: Config, sandbox: Sandbox) -> None:
    service = Service(asking(config, sandbox.url))
    with service.running():
        until(lambda: len(service.passes()) >= 3)
        started = service.rows("SELECT started_at, trigger FROM ingests ORDER BY id LIMIT 3")
    moments = [as_moment(row[0]) for row in started]
    # A first pass that is late on a busy machine shortens the gap after it, and no more than that.
    assert all(early < late for early, late in pairwise(moments))
    assert (moments[-1] - moments[0]).total_seconds() > 0.5
    assert {trigger for _moment, trigger in started} == {"schedule"}


def test_new_lists_are_read_by_the_next_pass_and_bad_lines_stop_nothing(
    config: Config,
    sandbox: Sandbox,
    run_list: Callable[[str, str], None],
    logged: Callable[[], list[dict[str, Any]]],
) -> None:
    first, second, *_ = run_ids(sandbox)
    service = Service(asking(config, sandbox.url))
    with service.running():
        until(service.passes)
        run_list("a.txt", f"{first}\nbad\tline\n..\n")
        until(lambda: service.rows("SELECT run_id FROM runs") == [(first,)])
        run_list("b.txt", second)
        until(lambda: len(service.rows("SELECT run_id FROM runs")) == 2)
    [bad_line, *_] = [line for line in logged() if "a.txt:3: " in line["event"]]
    assert bad_line["level"] == "warning"
    assert "pass_started" in bad_line


def test_a_list_that_cannot_be_read_stops_no_other(
    config: Config,
    sandbox: Sandbox,
    run_list: Callable[[str, str], None],
    tmp_path: Path,
    logged: Callable[[], list[dict[str, Any]]],
) -> None:
    first, *_ = run_ids(sandbox)
    run_list("b.txt", first)
    folder = tmp_path / "runs" / "a.txt"
    folder.mkdir()
    service = Service(asking(config, sandbox.url))
    with service.running():
        until(lambda: service.rows("SELECT run_id FROM runs") == [(first,)])
    assert events(logged(), f"{folder}: cannot be read: Is a directory")


def test_an_api_that_is_down_costs_a_pass_and_the_next_one_makes_up_for_it(
    config: Config, run_list: Callable[[str, str], None]
) -> None:
    port = free_port()
    run_list("a.txt", "r1")
    service = Service(asking(config, f"http://127.0.0.1:{port}"))
    with service.running():
        until(service.passes)
        with fake_api.serving(port) as api:
            api.other = result()
            until(lambda: service.rows("SELECT run_id FROM runs") == [("r1",)])
            codes = until(lambda: service.passes()[-1] == 0 and service.passes())
    assert set(codes) == {0, 5}
    assert codes == sorted(codes, reverse=True)


def test_a_database_that_cannot_be_used_costs_passes_and_then_they_go_on(
    config: Config, sandbox: Sandbox, logged: Callable[[], list[dict[str, Any]]]
) -> None:
    service = Service(asking(config, sandbox.url))
    with service.running():
        until(service.passes)
        service.execute("UPDATE result_archiver_version SET version_num = '0001'")
        failed = until(lambda: events(logged(), "pass failed"))
        before = len(service.passes())
        service.execute(f"UPDATE result_archiver_version SET version_num = '{database.HEAD}'")
        codes = until(lambda: len(service.passes()) > before and service.passes())
    assert failed[0]["exit_code"] == 4
    assert failed[0]["reason"].endswith("run `result-archiver db upgrade`")
    assert set(codes) == {0}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_job_says_what_happens_to_late_and_overlapping_passes(
    config: Config, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[BackgroundScheduler] = []
    start = BackgroundScheduler.start

    def start_and_tell(its_scheduler: BackgroundScheduler) -> None:
        started.append(its_scheduler)
        start(its_scheduler)

    monkeypatch.setattr(BackgroundScheduler, "start", start_and_tell)
    with Service(asking(config, sandbox.url)).running():
        [job] = until(lambda: started and started[0].get_jobs())
    assert (job.misfire_grace_time, job.coalesce, job.max_instances) == (3600, True, 1)


# --- passes that do not come at their time ---


@pytest.fixture
def missed() -> Callable[[], dict[str, int]]:
    """Return how many passes were counted since the test began, by way."""
    before = dict(prometheus.missed_passes)
    return lambda: {way: passes - before[way] for way, passes in prometheus.missed_passes.items()}


def submitted(*moments: datetime, code: int = EVENT_JOB_SUBMITTED) -> JobSubmissionEvent:
    return JobSubmissionEvent(code, "pass", "default", list(moments))


EVERY_MINUTE = Schedule(every=timedelta(minutes=1))


@pytest.mark.parametrize(("minutes", "caught_up"), [(1, 0), (2, 1), (480, 479)])
def test_one_pass_that_makes_up_for_several_says_for_how_many(
    minutes: int,
    caught_up: int,
    missed: Callable[[], dict[str, int]],
    logged: Callable[[], list[dict[str, Any]]],
) -> None:
    listener = MissedPasses(make_trigger(EVERY_MINUTE))
    listener.hear(submitted(END))
    listener.hear(submitted(END + timedelta(minutes=minutes)))
    assert missed()["caught_up"] == caught_up
    assert [line["passes"] for line in logged()] == [caught_up] * (caught_up > 0)


def test_passes_that_come_while_one_is_running_are_skipped(
    missed: Callable[[], dict[str, int]], logged: Callable[[], list[dict[str, Any]]]
) -> None:
    listener = MissedPasses(make_trigger(EVERY_MINUTE))
    listener.hear(submitted(END))
    for minute in (1, 2, 5):
        moment = END + timedelta(minutes=minute)
        listener.hear(submitted(moment, code=EVENT_JOB_MAX_INSTANCES))
    listener.hear(submitted(END + timedelta(minutes=6)))
    assert missed() == {"missed": 0, "skipped": 5, "caught_up": 0}
    assert {line["reason"] for line in logged()} == {"the pass before is still running"}


def test_a_pass_that_is_too_late_is_missed(
    missed: Callable[[], dict[str, int]], logged: Callable[[], list[dict[str, Any]]]
) -> None:
    listener = MissedPasses(make_trigger(EVERY_MINUTE))
    listener.hear(submitted(END))
    listener.hear(JobExecutionEvent(EVENT_JOB_MISSED, "pass", "default", END))
    assert missed() == {"missed": 1, "skipped": 0, "caught_up": 0}
    [line] = events(logged(), "passes missed")
    assert line["scheduled_at"] == END.isoformat()


# --- the service as a process ---


@pytest.fixture
def slow_sandbox() -> Iterator[Sandbox]:
    """A world whose API takes a second for each answer."""
    clock = Clock(END + timedelta(days=60), speed=0)
    with running(World(end=END, runs=40), clock, latency_ms=1000) as sandbox:
        yield sandbox


def scheduled(folder: Path, database_url: str, url: str) -> Program:
    """Return the program as a service with a pass each second that watches runs.txt."""
    return program(folder, database_url, url).given(
        RESULT_ARCHIVER__RUNS__SOURCES="runs.txt",
        RESULT_ARCHIVER__SCHEDULE__EVERY="1s",
        RESULT_ARCHIVER__API__CONNECTIONS="2",
        RESULT_ARCHIVER__LOG__FORMAT="json",
        TZ="No/Such_Zone",  # what the machine thinks of time zones is nothing to us
    )


def stop(process: "Popen[str]", number: signal.Signals) -> tuple[int, float, list[dict[str, Any]]]:
    """Send a signal; return the exit code, the seconds that it took, and what was logged."""
    sent_at = time.monotonic()
    process.send_signal(number)
    _stdout, stderr = process.communicate(timeout=PATIENCE_S)
    return (
        process.returncode,
        time.monotonic() - sent_at,
        [json.loads(line) for line in stderr.splitlines()],
    )


def query(database_url: str, statement: str) -> list[Any]:
    engine = database.connect(database_url)
    with database.reading(engine) as connection:
        rows = [tuple(row) for row in connection.execute(text(statement))]
    engine.dispose()
    return rows


def finished_passes(database_url: str) -> int:
    [(count,)] = query(database_url, "SELECT count(*) FROM ingests WHERE finished_at IS NOT NULL")
    return int(count)


@pytest.mark.parametrize(
    ("database_url", "number"),
    [("sqlite", signal.SIGTERM), ("postgresql", signal.SIGINT)],
    indirect=["database_url"],
)
def test_a_signal_amid_a_pass_ends_it_soon_and_keeps_the_runs_in_hand(
    tmp_path: Path, database_url: str, slow_sandbox: Sandbox, number: signal.Signals
) -> None:
    archiver = scheduled(tmp_path, database_url, slow_sandbox.url)
    archiver.write("runs.txt", "\n".join(run_ids(slow_sandbox)))
    with archiver.started("schedule") as process:
        until(lambda: slow_sandbox.requests.total() >= 3)
        exit_code, took_s, _lines = stop(process, number)
    asked = slow_sandbox.requests.total()
    assert exit_code == 0
    assert took_s < 10
    assert asked < 10
    assert query(database_url, "SELECT count(*) FROM runs") == [(asked,)]
    assert query(database_url, "SELECT count(lease_owner) FROM tracked_runs") == [(0,)]
    assert query(database_url, "SELECT exit_code FROM ingests") == [(128 + number,)]


def test_a_signal_between_passes_ends_it_at_once(
    tmp_path: Path, sqlite_url: str, sandbox: Sandbox
) -> None:
    archiver = scheduled(tmp_path, sqlite_url, sandbox.url).given(
        RESULT_ARCHIVER__SCHEDULE__EVERY="1h"
    )
    archiver.write("runs.txt", run_ids(sandbox)[0])
    with archiver.started("schedule") as process:
        until(lambda: sandbox.requests and finished_passes(sqlite_url))
        exit_code, took_s, lines = stop(process, signal.SIGTERM)
    assert exit_code == 0
    assert took_s < 5
    assert [line["event"] for line in lines] == [
        "service started", "pass finished", "service stopped",
    ]  # fmt: skip


def test_passes_that_a_long_one_or_a_stopped_process_costs_are_logged_and_counted(
    tmp_path: Path, sqlite_url: str, slow_sandbox: Sandbox
) -> None:
    port = free_port()
    archiver = scheduled(tmp_path, sqlite_url, slow_sandbox.url).given(
        RESULT_ARCHIVER__TELEMETRY__METRICS_PORT=str(port)
    )
    archiver.write("runs.txt", "\n".join(run_ids(slow_sandbox)[:6]))  # three seconds
    with archiver.started("schedule") as process:
        until(lambda: slow_sandbox.requests and finished_passes(sqlite_url))
        process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        process.send_signal(signal.SIGCONT)
        before = finished_passes(sqlite_url)
        until(lambda: finished_passes(sqlite_url) > before + 1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as response:
            metrics = response.read().decode()
        *_end, lines = stop(process, signal.SIGTERM)
    for way in ("skipped", "caught_up"):
        found = events(lines, f"passes {way.replace('_', ' ')}")
        counted = sum(line["passes"] for line in found)
        assert counted >= 2
        assert f'result_archiver_passes_missed_total{{way="{way}"}} {counted}.0' in metrics
    assert not [line for line in lines if "maximum number of running" in line["event"]]


def test_two_services_on_one_database_fetch_each_run_once(
    tmp_path: Path, database_url: str, sandbox: Sandbox
) -> None:
    archiver = scheduled(tmp_path, database_url, sandbox.url)
    archiver.write("runs.txt", "\n".join(run_ids(sandbox)))
    with archiver.started("schedule") as one, archiver.started("schedule") as other:
        until(lambda: len(sandbox.requests) == len(run_ids(sandbox)))
        until(lambda: finished_passes(database_url) >= 4)
        ends = [stop(process, signal.SIGTERM) for process in (one, other)]
    assert [exit_code for exit_code, _took_s, _lines in ends] == [0, 0]
    assert sandbox.requests == dict.fromkeys(run_ids(sandbox), 1)
    for _exit_code, _took_s, lines in ends:
        assert events(lines, "pass failed") == []


def test_every_line_that_a_pass_logs_names_it_and_its_run(
    tmp_path: Path, sqlite_url: str, sandbox: Sandbox
) -> None:
    archiver = scheduled(tmp_path, sqlite_url, sandbox.url)
    archiver.write("runs.txt", "no-such-run")
    with archiver.started("schedule") as process:
        until(lambda: sandbox.requests and finished_passes(sqlite_url))
        *_end, lines = stop(process, signal.SIGTERM)
    [(pass_id,)] = query(sqlite_url, "SELECT id FROM ingests WHERE failed = 1")
    [failed] = events(lines, "run failed")
    [finished] = [line for line in events(lines, "pass finished") if line["failed"]]
    assert (failed["pass_id"], failed["run_id"]) == (pass_id, "no-such-run")
    assert finished["pass_id"] == pass_id
    assert failed["pass_started"] == finished["pass_started"]


# --- the passes that were done ---


def test_passes_are_listed_with_trigger_requests_length_and_counts(
    tmp_path: Path, database_url: str, sandbox: Sandbox
) -> None:
    archiver = program(tmp_path, database_url, sandbox.url)
    archiver.call("ingest", *run_ids(sandbox)[:2], "no-such-run")
    listed = archiver.call("passes", "--json").json()
    facts = ("id", "trigger", "requests", "new", "failed", "exit_code")
    assert [tuple(each[fact] for fact in facts) for each in listed] == [(1, "ingest", 3, 2, 1, 1)]
    assert 0 <= listed[0]["duration_s"] < 60
    heading, _rule, row = archiver.call("passes").stdout.splitlines()
    assert heading.split() == [
        "pass", "started", "at", "length", "trigger", "requests", "new", "changed", "same",
        "failed", "exit",
    ]  # fmt: skip
    number, day, at, *rest = row.split()
    assert number == "1"
    datetime.fromisoformat(f"{day} {at}")
    assert rest[0].startswith("0:00:")
    assert rest[1:] == ["ingest", "3", "2", "0", "0", "1", "1"]


def test_a_large_pass_and_one_under_way_fit_one_line_of_80_columns_each(
    tmp_path: Path, sqlite_url: str
) -> None:
    archiver = program(tmp_path, sqlite_url, "http://127.0.0.1:1")
    archiver.call("db", "upgrade")
    began = datetime(2026, 5, 4, 6, tzinfo=UTC)
    counts = {"requests": 40_000, "new": 20_000, "changed": 9_999, "unchanged": 10_000}
    whole = {"finished_at": began + timedelta(hours=3), "failed": 900, "rejected": 99}
    engine = database.connect(sqlite_url)
    with database.writing(engine) as connection:
        row = {"trigger": "schedule", "started_at": began}
        connection.execute(
            insert(ingests).values(id=98_765, exit_code=143, **row, **counts, **whole)
        )
        connection.execute(insert(ingests).values(id=98_766, **row))
    engine.dispose()
    lines = archiver.call("passes").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[2:]] == ["98766", "98765"]
    assert lines[3].split()[3:] == [
        "3:00:00", "schedule", "40000", "20000", "9999", "10000", "999", "143",
    ]  # fmt: skip


# --- how much is printed ---


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_each_line_of_a_pass_has_its_time_and_number(
    tmp_path: Path, sqlite_url: str, sandbox: Sandbox, log_format: str
) -> None:
    archiver = program(tmp_path, sqlite_url, sandbox.url).given(
        RESULT_ARCHIVER__LOG__FORMAT=log_format
    )
    archiver.write("runs.txt", "no-such-run\n..\n")
    lines = archiver.call("ingest", "--from", "runs.txt").stderr.splitlines()
    bad_line, *of_pass = lines
    assert len(of_pass) == 3
    assert "runs.txt:2: a run ID cannot be . or .." in bad_line
    if log_format == "json":
        assert all(json.loads(line)["timestamp"].endswith("Z") for line in lines)
        assert {json.loads(line)["pass_id"] for line in of_pass} == {1}
        assert [json.loads(line)["event"] for line in of_pass] == [
            "run failed", "pass finished", "runs given up",
        ]  # fmt: skip
    else:
        assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z ", line) for line in lines)
        assert all("Z pass 1: " in line for line in of_pass)


@pytest.mark.parametrize("place", ["before", "after"])
def test_quiet_leaves_warnings_and_errors_and_verbose_adds_debug(
    tmp_path: Path, sqlite_url: str, sandbox: Sandbox, place: str
) -> None:
    archiver = program(tmp_path, sqlite_url, sandbox.url)
    run_id, *_ = run_ids(sandbox)
    options = {"before": ("--quiet", run_id), "after": (run_id, "-q")}
    assert archiver.call("ingest", *options[place]) == (0, "", "")
    assert archiver.call("track", "--quiet", "no-such-run") == (0, "", "")
    [failed, given_up] = archiver.call("ingest", "--quiet").stderr.splitlines()
    assert "run failed" in failed
    assert "runs given up, now and before: 1 (1 not_found)" in given_up
    debug = archiver.given(RESULT_ARCHIVER__LOG__LEVEL="error")
    assert debug.call("ingest").stderr == ""
    assert "pass 4: 0 new" in debug.call("ingest", "-v").stderr


def test_an_error_that_ends_a_pass_has_its_time(tmp_path: Path, sandbox: Sandbox) -> None:
    folder = tmp_path / "folder.db"
    folder.mkdir()
    archiver = program(tmp_path, f"sqlite:///{folder}", sandbox.url)
    done = archiver.call("ingest")
    assert done.exit_code == 4
    assert re.match(r"[-0-9]+T[:0-9]+Z error: sqlite:///", done.stderr)
    as_json = archiver.given(RESULT_ARCHIVER__LOG__FORMAT="json").call("ingest")
    assert json.loads(as_json.stderr)["exit_code"] == 4
