"""The ground gives way: kills, restarts, a full disk, lost networks, clocks that jump (promise 5).

Everything happens twice: in short here, and in full by `make chaos`, which prints what it saw.
CHAOS_SEED picks other instants.
"""

import json
import os
import random
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine, func, make_url, select, text

from etl import clock
from etl.cli.session import Wiring
from etl.config.settings import Config, Polling
from etl.db import database
from etl.db.database_clock import keep_clock
from etl.db.schema import runs, tracked_runs
from etl.fetch.door import in_threads
from etl.fetch.rate_limit import Pauses
from etl.ingest.begin import open_pass
from etl.ingest.context import IngestContext
from etl.ingest.held_runs import HeldRuns
from etl.ledger import standings, tracking
from etl.sandbox.runs import Run
from etl.sandbox.server import Sandbox, running
from etl.sandbox.world import Shape, World
from etl.sandbox.world_clock import Clock
from tests.support.dump import DECISIONS, PASSES, dump
from tests.support.postgres import Server, find_programs, run, server_user
from tests.support.program import COMMAND, Done, Program, program

SEED = int(os.environ.get("CHAOS_SEED", "20251"))
END = datetime(2025, 6, 1, 9, 0, tzinfo=UTC)
SHAPE = Shape(environments=2, tests=3)
LARGE = Shape(environments=2, tests=30)
LEASE_S = 1.0

OUR_TIMES = {
    "archived_at", "changed_at", "row_changed_at", "context_changed_at", "changed_by",
    "decided_at", "due_at", "fetched_at", "first_run_id", "first_seen_at", "first_tracked_at",
    "last_fetched_at", "last_seen_at", "measured_at", "digest", "observed_at", "superseded_at",
}  # fmt: skip
"""What tells when, or in which order, we looked."""


class Scale(NamedTuple):
    """How much is done by how many `requests_per_second` of a process, and how often disturbed."""

    runs: int
    requests_per_second: str
    kills: int
    migrations: int
    restarts: int


SHORT = Scale(runs=120, requests_per_second="40", kills=5, migrations=3, restarts=2)
FULL = Scale(runs=2000, requests_per_second="12", kills=100, migrations=25, restarts=10)


def in_full(*values: Any) -> Any:
    """Mark what only `make chaos` runs."""
    return pytest.param(*values, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])


SCALES = [pytest.param(SHORT, id="short"), in_full(FULL)]
BOTH_DATABASES = ["sqlite", in_full("postgresql")]
"""For what hardly depends on the database: both, but in short only one."""


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    engine = database.connect(url)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def sandbox_of(world: World, port: int = 0) -> Iterator[Sandbox]:
    with running(world, Clock(END, speed=0), port=port) as sandbox:
        yield sandbox


def track(archiver: Program, tracked: Iterable[Run]) -> None:
    listed = archiver.write("runs.txt", "\n".join(run.run_id for run in tracked))
    assert archiver.call("track", "--from", listed).exit_code == 0


def at_rate(archiver: Program, requests_per_second: str) -> Program:
    return archiver.given(RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND=requests_per_second)


def with_short_leases(archiver: Program) -> Program:
    return archiver.given(RESULT_ARCHIVER__POLLING__LEASE_FOR=f"{LEASE_S}s")


def content(url: str) -> dict[str, list[dict[str, Any]]]:
    """Return all that an archive says, but when we looked and how often."""
    with opened(url) as engine, database.reading(engine) as connection:
        tables = dump(connection, leave_out=(*PASSES, *DECISIONS))
    hidden = OUR_TIMES | {"fetches"}
    return {
        name: [{key: value for key, value in row.items() if key not in hidden} for row in rows]
        for name, rows in tables.items()
    }


def undisturbed(folder: Path, sandbox: Sandbox) -> dict[str, list[dict[str, Any]]]:
    """Return the content of an archive of the same runs to which nothing happened."""
    url = f"sqlite:///{folder}/undisturbed.db"
    archiver = program(folder, url, sandbox.url)
    track(archiver, sandbox.world.runs(END))
    assert archiver.call("ingest").exit_code == 0
    return content(url)


def archived(url: str) -> int:
    with opened(url) as engine, database.reading(engine) as connection:
        return connection.scalar(select(func.count()).select_from(runs)) or 0


def due(url: str) -> int:
    with opened(url) as engine, database.reading(engine) as connection:
        return standings.standings(connection, clock.now()).due


def port_of(sandbox: Sandbox) -> int:
    return make_url(sandbox.url).port or 0


def wait_for(happened: Callable[[], bool], patience_s: float = 30) -> None:
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def tell(figures: str) -> None:
    """Say what happened, for `make chaos` to show."""
    sys.stdout.write(f"\n{figures}\n")


def url_of(archiver: Program) -> str:
    return archiver.environment["RESULT_ARCHIVER__DATABASE__URL"]


def assert_clean(archiver: Program) -> None:
    verified = archiver.call("verify")
    assert verified.exit_code == 0, verified.stdout
    with opened(url_of(archiver)) as engine, database.reading(engine) as connection:
        glance = standings.standings(connection, clock.now())
    assert (glance.due, glance.leased) == (0, 0)


# Kills


@pytest.mark.parametrize("scale", SCALES)
def test_kills_lose_and_double_nothing(database_url: str, tmp_path: Path, scale: Scale) -> None:
    """Half of the runs are new, the others have changed since they were archived."""
    early = World(end=END, runs=scale.runs, shape=Shape(environments=1, tests=4))
    late = World(end=END, runs=scale.runs, shape=Shape(environments=2, tests=3))
    calm_url = f"sqlite:///{tmp_path}/calm.db"
    with sandbox_of(early) as sandbox:
        calm, killed = (
            with_short_leases(program(tmp_path, url, sandbox.url))
            for url in (calm_url, database_url)
        )
        for archiver in (calm, killed):
            track(archiver, list(early.runs(END))[::2])
            assert archiver.call("ingest").exit_code == 0
            track(archiver, late.runs(END))
            make_all_due(url_of(archiver))
    with sandbox_of(late, port_of(sandbox)) as sandbox:
        started = kill_at_random(killed, sandbox.requests, scale)
        left = due(database_url)
        assert left > 0, "the work was done before the last kill"
        time.sleep(LEASE_S)
        assert killed.run("ingest").exit_code == 0
        asked = sandbox.requests.total()
        assert calm.call("ingest").exit_code == 0
    assert content(database_url) == content(calm_url)
    assert len(content(database_url)["revisions"]) == 1.5 * scale.runs
    assert_clean(killed)
    tell(
        f"{started} processes, {scale.kills} of them killed: {left} of {scale.runs} runs were"
        f" left to the last pass; {asked} requests in all"
    )


def make_all_due(url: str) -> None:
    with opened(url) as engine, database.writing(engine) as connection:
        tracking.make_due(connection, None, clock.now())


def kill_at_random(archiver: Program, requests: Counter[str], scale: Scale) -> int:
    """Have two passes going all the time, and kill the older one again and again.

    The kills come evenly over 0.8 of the requests that would be needed without them. Returns how
    many processes were started.
    """
    chance, left = random.Random(SEED), scale.kills
    slowly = at_rate(archiver, scale.requests_per_second)
    with ExitStack() as stack:
        older = stack.enter_context(slowly.started("ingest", "--wait"))
        for started in count(2):
            younger = stack.enter_context(slowly.started("ingest", "--wait"))
            await_work(older, requests, chance.uniform(0, 1.6 * scale.runs / scale.kills))
            time.sleep(chance.uniform(0, 0.2))
            older.kill()
            _, errors = older.communicate(timeout=30)
            assert older.returncode in {0, -9}, errors
            left -= older.returncode == -9
            if left == 0:
                return started
            older = younger
    raise AssertionError("unreachable")


def await_work(process: subprocess.Popen[str], requests: Counter[str], more: float) -> None:
    """Wait for some more requests, or until the process finds nothing more to do."""
    enough = requests.total() + more
    wait_for(lambda: requests.total() >= enough or process.poll() is not None)


@pytest.mark.parametrize("scale", SCALES)
def test_a_kill_amid_the_first_migration_leaves_all_or_nothing(
    database_url: str, tmp_path: Path, scale: Scale
) -> None:
    chance = random.Random(SEED)
    archiver = program(tmp_path, database_url, "http://127.0.0.1:9")
    revisions = []
    with migrating(archiver) as process:
        begun_at = time.monotonic()
        assert process.wait(timeout=30) == 0
        lasts_s = time.monotonic() - begun_at
    for _ in range(scale.migrations):
        take_down(archiver)
        with migrating(archiver) as process:
            # Squared, since the process does not end with the migration.
            time.sleep(lasts_s * chance.random() ** 2)
            process.kill()
        with opened(database_url) as engine:
            revisions.append(database.current_revision(engine))
    assert set(revisions) <= {None, database.HEAD}
    assert None in revisions, "no kill came in time"
    assert archiver.call("db", "upgrade").exit_code == 0
    assert_clean(archiver)
    tell(f"{revisions.count(None)} of {len(revisions)} kills came before the commit")


@contextmanager
def migrating(archiver: Program) -> Iterator[subprocess.Popen[str]]:
    """Start to make a new archive, up to where the database is being used."""
    with opened(url_of(archiver)) as engine, archiver.started("db", "upgrade") as process:
        wait_for(lambda: is_used(engine))
        yield process


def is_used(engine: Engine) -> bool:
    if engine.dialect.name == "sqlite":
        return database.exists(engine)
    others = "SELECT count(*) > 1 FROM pg_stat_activity WHERE datname = current_database()"
    with database.reading(engine) as connection:
        return bool(connection.scalar(text(others)))


def take_down(archiver: Program) -> None:
    """Make the database as new."""
    if url_of(archiver).startswith("sqlite"):
        for file in archiver.folder.glob("archive.db*"):
            file.unlink()
    else:
        assert archiver.call("db", "downgrade", "base").exit_code == 0


# Restarts of PostgreSQL


@pytest.mark.parametrize("scale", SCALES)
def test_a_pass_outlives_restarts_of_the_database(
    postgresql: Server, postgresql_url: str, tmp_path: Path, scale: Scale
) -> None:
    chance = random.Random(SEED)
    world = World(end=END, runs=scale.runs, shape=SHAPE)
    url = durable(postgresql_url)
    with sandbox_of(world) as sandbox:
        archiver = at_rate(program(tmp_path, url, sandbox.url), "20")
        track(archiver, world.runs(END))
        with archiver.started("ingest", "--json") as process:
            wait_for(lambda: sandbox.requests.total() > 0)
            for restart in range(scale.restarts):
                time.sleep(chance.uniform(0.2, 1.8))
                pg_ctl(postgresql, "stop", "--mode", ["immediate", "fast"][restart % 2])
                time.sleep(chance.uniform(0, 1))
                pg_ctl(postgresql, "start", "--log", postgresql.directory / "log")
            assert sandbox.requests.total() < scale.runs, "the pass was over too soon"
            output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert json.loads(output)["new"] == scale.runs
        assert set(sandbox.requests.values()) == {1}
        assert content(url) == undisturbed(tmp_path, sandbox)
    assert_clean(archiver)
    tell(f"{scale.restarts} restarts: {errors.count('database away')} times away")


def durable(url: str) -> str:
    """Have the server keep what it confirmed, which the tests' own otherwise need not."""
    options = {"options": "-c synchronous_commit=on"}
    return make_url(url).update_query_dict(options).render_as_string(hide_password=False)


def pg_ctl(server: Server, *arguments: str | Path) -> None:
    run(find_programs() / "pg_ctl", "--wait", *arguments, directory=server.directory)


def test_a_commit_whose_answer_is_lost_is_not_done_again(
    postgresql_url: str, tmp_path: Path
) -> None:
    """The connection breaks at a third of the COMMITs, eight at most, after they were done."""
    world = World(end=END, runs=120, shape=SHAPE)
    with sandbox_of(world) as sandbox, Cutter.running(postgresql_url) as cutter:
        archiver = at_rate(program(tmp_path, cutter.url, sandbox.url), "60")
        track(archiver, world.runs(END))
        cutter.cuts_at = lambda: sandbox.requests.total() > 0 and cutter.cuts < 8
        done = archiver.call("ingest", "--json")
        assert done.exit_code == 0, done.stderr
        assert done.json()["new"] == len(sandbox.requests) == 120
        assert set(sandbox.requests.values()) == {1}
        assert cutter.cuts > 1
        cutter.cuts_at = lambda: False
        assert content(postgresql_url) == undisturbed(tmp_path, sandbox)


class Cutter(socketserver.ThreadingTCPServer):
    """Stands before a PostgreSQL server and breaks connections off when a COMMIT is confirmed.

    Not every one, and only while `cuts_at` says so.
    """

    daemon_threads = True
    COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Cut)
        behind = make_url(url)
        self.behind = (str(behind.host), behind.port or 0)
        self.url = behind.set(port=self.server_address[1]).render_as_string(hide_password=False)
        self.cuts_at: Callable[[], bool] = lambda: False
        self.chance = random.Random(SEED)
        self.cuts = 0

    @classmethod
    @contextmanager
    def running(cls, url: str) -> Iterator["Cutter"]:
        with cls(url) as cutter:
            thread = threading.Thread(target=cutter.serve_forever, args=[0.01])
            thread.start()
            try:
                yield cutter
            finally:
                cutter.shutdown()
                thread.join()

    def lets_pass(self, data: bytes) -> bool:
        is_cut = self.COMMITTED in data and self.cuts_at() and self.chance.random() < 0.3
        self.cuts += is_cut
        return not is_cut


class _Cut(socketserver.BaseRequestHandler):
    server: Cutter

    def handle(self) -> None:
        with socket.create_connection(self.server.behind) as behind:
            threading.Thread(target=self._ask, args=[behind], daemon=True).start()
            with suppress(OSError):
                while (data := behind.recv(65536)) and self.server.lets_pass(data):
                    self.request.sendall(data)
            with suppress(OSError):
                self.request.shutdown(socket.SHUT_RDWR)

    def _ask(self, behind: socket.socket) -> None:
        with suppress(OSError):
            while data := self.request.recv(65536):
                behind.sendall(data)
            behind.shutdown(socket.SHUT_RDWR)


def test_a_database_that_stays_away_ends_the_pass_in_time(
    postgresql: Server, postgresql_url: str, tmp_path: Path
) -> None:
    """However many writes are waiting, the patience is for all of them together."""
    world = World(end=END, runs=250, shape=SHAPE)
    stopped_at: list[float] = []

    def stop() -> None:
        wait_for(lambda: sandbox.requests.total() > 100)
        pg_ctl(postgresql, "stop", "--mode", "fast")
        stopped_at.append(time.monotonic())

    with sandbox_of(world) as sandbox:
        archiver = with_short_leases(program(tmp_path, postgresql_url, sandbox.url))
        archiver = at_rate(archiver, "200")
        track(archiver, world.runs(END))
        with beside(stop):
            done = archiver.wired(Wiring(patience_s=2.0)).call("ingest")
        ended_at = time.monotonic()
        pg_ctl(postgresql, "start", "--log", postgresql.directory / "log")
        assert done.exit_code == 4
        assert error_of(done).startswith("error: postgresql://")
        assert 1.5 < ended_at - stopped_at[0] < 5
        time.sleep(LEASE_S)
        assert archiver.call("ingest").exit_code == 0
        assert content(postgresql_url) == undisturbed(tmp_path, sandbox)


def test_leases_are_renewed_each_third_of_their_length(sqlite_url: str, tmp_path: Path) -> None:
    world = World(end=END, runs=300, shape=SHAPE)
    ends: set[datetime] = set()
    with sandbox_of(world) as sandbox, opened(sqlite_url) as engine:
        archiver = with_short_leases(program(tmp_path, sqlite_url, sandbox.url))
        track(archiver, world.runs(END))
        begun_at = time.monotonic()
        with at_rate(archiver, "100").started("ingest") as process:
            while process.poll() is None:
                with database.reading(engine) as connection:
                    ends.update(
                        filter(None, connection.scalars(select(tracked_runs.c.lease_until)))
                    )
                time.sleep(0.02)
        assert process.returncode == 0
    claims = 9  # of 36 runs each
    beats = (time.monotonic() - begun_at) / (LEASE_S / 3)
    assert claims < len(ends) <= beats + claims


@contextmanager
def beside(task: Callable[[], None]) -> Iterator[None]:
    """Do `task` in a thread, while the context lasts or longer."""
    with ThreadPoolExecutor(1) as executor:
        doing = executor.submit(task)
        yield
        doing.result()


def error_of(done: Done) -> str:
    """Return the one line of stderr that tells what is wrong, which is the last, undated."""
    errors = [line for line in done.stderr.splitlines() if "rror" in line]
    assert len(errors) == 1, done.stderr
    return re.sub(r"^[\dT:-]+Z (pass \d+: )?", "", done.stderr.splitlines()[-1])


# A disk that fills up, an archive that may not be written

SMALL_BYTES = 2_000_000
LIMITED = ("sh", "-c", f'ulimit -f {SMALL_BYTES // 512}; exec "$@"', "sh")
"""Runs a command whose files may not grow beyond that: a full disk that anybody can have."""
HARMLESS = ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
"""Runs a command for which file modes count, even root's."""


def run_as(prefix: Sequence[str], archiver: Program, *arguments: str | Path) -> Done:
    """Run a command through another one that takes something from it."""
    done = subprocess.run(
        [*prefix, *COMMAND, *arguments],
        cwd=archiver.folder,
        env=archiver.environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


class Disk(NamedTuple):
    """A database with little room for what `call` runs, until `grow`."""

    url: str
    call: Callable[..., Done]
    grow: Callable[[], object]


MakeDisk = Callable[[Path, pytest.FixtureRequest], AbstractContextManager[Disk]]


@contextmanager
def disk_with_a_limit(folder: Path, _request: pytest.FixtureRequest) -> Iterator[Disk]:
    yield Disk(f"sqlite:///{folder}/archive.db", partial(run_as, LIMITED), lambda: None)


@contextmanager
def small_file_system(folder: Path, _request: pytest.FixtureRequest) -> Iterator[Disk]:
    """A disk that is really full in the end."""
    with mounted(folder, SMALL_BYTES * 8 // 5) as grow:  # for the database and its log
        yield Disk(f"sqlite:///{folder}/archive.db", partial(run_as, ()), grow)


@contextmanager
def small_tablespace(_folder: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """The same for PostgreSQL, whose own files have their room elsewhere."""
    server: Server = request.getfixturevalue("postgresql")

    def call(archiver: Program, *arguments: str) -> Done:
        return archiver.wired(Wiring(patience_s=1.0)).call(*arguments)

    with (
        TemporaryDirectory(dir=server.directory) as name,
        server.administer() as connection,
        mounted(Path(name), EMPTY_BYTES + SMALL_BYTES) as grow,
    ):
        if user := server_user():
            shutil.chown(name, user)
        connection.execute(f"CREATE TABLESPACE small LOCATION '{name}'".encode())
        with server.database() as url:
            moved = url.rpartition("/")[2]
            connection.execute(f"ALTER DATABASE {moved} SET TABLESPACE small".encode())
            yield Disk(url, call, grow)
        connection.execute("DROP TABLESPACE small")


EMPTY_BYTES = 12_000_000
"""What PostgreSQL needs for an archive without a run."""


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """Make a file system of `size` bytes, which the function that is yielded makes larger."""
    mount(f"size={size}", folder)
    try:
        yield lambda: mount("remount,size=64m", folder)
    finally:
        subprocess.run(["umount", folder], check=True)


def mount(options: str, folder: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def may_mount() -> bool:
    with TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder), SMALL_BYTES):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


REALLY_SMALL = [in_full(small_file_system), in_full(small_tablespace)] if may_mount() else []


@pytest.mark.parametrize("small_disk", [disk_with_a_limit, *REALLY_SMALL])
def test_a_disk_that_fills_up_costs_nothing_but_time(
    small_disk: MakeDisk, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    world = World(end=END, runs=250, shape=LARGE)
    folder = tmp_path / "disk"
    folder.mkdir()
    with sandbox_of(world) as sandbox, small_disk(folder, request) as disk:
        archiver = with_short_leases(program(tmp_path, disk.url, sandbox.url))
        track(archiver, world.runs(END))
        full = disk.call(at_rate(archiver, "60"), "ingest")
        assert full.exit_code == 4
        assert error_of(full).startswith(f"error: {make_url(disk.url).get_backend_name()}://")
        assert 0 < archived(disk.url) < 250
        assert disk.call(archiver, "status").exit_code == 0
        assert archiver.call("verify").exit_code == 0
        time.sleep(LEASE_S)
        disk.grow()
        assert archiver.call("ingest").exit_code == 0
        assert content(disk.url) == undisturbed(tmp_path, sandbox)
        assert_clean(archiver)


@pytest.mark.parametrize(
    "closed", [["disk/archive.db"], ["disk"], in_full(["disk/archive.db", "disk"])]
)
def test_an_archive_that_may_not_be_written_stays_as_it_is(
    tmp_path: Path, closed: list[str]
) -> None:
    world = World(end=END, runs=20, shape=SHAPE)
    (tmp_path / "disk").mkdir()
    file = tmp_path / "disk" / "archive.db"
    with sandbox_of(world) as sandbox:
        archiver = program(tmp_path, f"sqlite:///{file}", sandbox.url)
        track(archiver, world.runs(END))
        before = file.read_bytes()
        with unwritable([tmp_path / name for name in closed]):
            done = run_as(HARMLESS, archiver, "ingest")
        assert done.exit_code == 4
        assert error_of(done).startswith(f"error: sqlite:///{file}: ")
        assert file.read_bytes() == before
        assert not sandbox.requests
        assert archiver.call("ingest").exit_code == 0
        assert content(url_of(archiver)) == undisturbed(tmp_path, sandbox)


@contextmanager
def unwritable(paths: Sequence[Path]) -> Iterator[None]:
    modes = [path.stat().st_mode for path in paths]
    for path in paths:
        path.chmod(0o555)
    yield
    for path, mode in zip(paths, modes, strict=True):
        path.chmod(mode)


# A network that is lost


@pytest.mark.parametrize("database_url", BOTH_DATABASES, indirect=True)
def test_a_network_lost_amid_a_pass_leaves_the_rest_due(database_url: str, tmp_path: Path) -> None:
    world = World(end=END, runs=200, shape=SHAPE)
    with ExitStack() as stack:
        sandbox = stack.enter_context(sandbox_of(world))
        archiver = at_rate(program(tmp_path, database_url, sandbox.url), "100")
        track(archiver, world.runs(END))

        def lose() -> None:
            wait_for(lambda: sandbox.requests.total() > 50)
            stack.close()

        with beside(lose):
            done = archiver.wired(Wiring(pauses=Pauses(0.02))).call("ingest")
    assert done.exit_code == 5, done.stderr
    assert 0 < archived(database_url) < 200
    assert due(database_url) == 200 - archived(database_url)
    with sandbox_of(world, port_of(sandbox)) as sandbox:
        assert archiver.call("ingest").exit_code == 0
        assert content(database_url) == undisturbed(tmp_path, sandbox)
    assert_clean(archiver)


# Clocks that are wrong


class Watch:
    """Our own clock: stands still at `now`, which jumps by `jump` when `happened` first is so."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.jump = timedelta(0)
        self.happened: Callable[[], bool] = lambda: False

    def read(self) -> datetime:
        if self.jump and self.happened():
            self.now, self.jump = self.now + self.jump, timedelta(0)
        return self.now

    def on(self, archiver: Program) -> Program:
        """Return the program with this clock; it fetches in threads, which share it."""
        return archiver.wired(Wiring(self.read, in_threads, shared_clock=keep_clock))


YEAR = timedelta(days=365)


@pytest.mark.parametrize("database_url", BOTH_DATABASES, indirect=True)
@pytest.mark.parametrize("jump", [timedelta(0), timedelta(minutes=-5), -YEAR], ids=str)
def test_a_clock_set_back_amid_a_pass_has_each_run_asked_once(
    database_url: str, tmp_path: Path, jump: timedelta
) -> None:
    """Also runs that are still going, which are due again soon after an answer."""
    world = World(end=END, runs=300)
    with sandbox_of(world) as sandbox:
        watch = Watch(END)
        archiver = watch.on(program(tmp_path, database_url, sandbox.url))
        track(archiver, world.runs(END))
        watch.jump, watch.happened = jump, lambda: sandbox.requests.total() > 40
        assert archiver.call("ingest").exit_code in {0, 1}
        assert set(sandbox.requests.values()) == {1}
        assert len(sandbox.requests) == len(list(world.runs(END)))
        assert archiver.call("verify").exit_code == 0


def test_a_clock_that_was_a_year_ahead_holds_nothing_up(database_url: str, tmp_path: Path) -> None:
    """Runs of each kind are asked for by the first pass with the right time, and as usual then."""
    world = World(end=END, runs=300)
    with sandbox_of(world) as sandbox:
        watch = Watch(END + YEAR)
        archiver = watch.on(program(tmp_path, database_url, sandbox.url))
        known, new = split(world)
        track(archiver, known)
        assert archiver.call("ingest").exit_code in {0, 1}
        track(archiver, new)
        waiting = unfinished(database_url)
        watch.now = END
        sandbox.requests.clear()
        assert archiver.call("ingest").exit_code in {0, 1}
        assert sandbox.requests.keys() == waiting
        assert latest_due(database_url) < END + timedelta(days=60)
        sandbox.requests.clear()
        assert archiver.call("ingest").exit_code in {0, 1}
        assert not sandbox.requests
        assert archiver.call("verify").exit_code == 0


def test_a_lease_from_the_future_holds_nothing_up(database_url: str, tmp_path: Path) -> None:
    world = World(end=END, runs=20, shape=SHAPE)
    with sandbox_of(world) as sandbox:
        watch = Watch(END + YEAR)
        archiver = watch.on(program(tmp_path, database_url, sandbox.url))
        track(archiver, world.runs(END))
        with opened(database_url) as engine:
            ingest = IngestContext(engine, Config(sources={}), watch.read)
            open_pass(ingest, "test")
            dead = HeldRuns(engine, Polling(), watch.now, watch.read)
            assert len(dead.claim(20)) == 20
        watch.now = END
        assert archiver.call("ingest").exit_code == 0
        assert archived(database_url) == 20


def split(world: World) -> tuple[list[Run], list[Run]]:
    started = list(world.runs(END))
    return started[::2], started[1::2]


def unfinished(url: str) -> set[str]:
    with opened(url) as engine, database.reading(engine) as connection:
        query = select(tracked_runs.c.run_id).where(tracked_runs.c.due_at.is_not(None))
        return set(connection.scalars(query))


def latest_due(url: str) -> datetime:
    with opened(url) as engine, database.reading(engine) as connection:
        latest: datetime = connection.execute(select(func.max(tracked_runs.c.due_at))).scalar_one()
        return latest
