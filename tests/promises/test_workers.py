"""Several processes, killed processes, and whatever else may happen to the ledger."""

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)
from sqlalchemy import Engine, func, select

from bench import month
from etl import clock
from etl.answers.compression import compress
from etl.answers.normalize import normalize
from etl.answers.outcome import (
    Answer,
    Denied,
    Missing,
    Postponed,
    Reason,
    Reject,
    Target,
    TransientError,
)
from etl.answers.payload import decode
from etl.answers.test_names import name_tests
from etl.config.settings import Api, Config, Database, Polling, Source
from etl.db import database
from etl.db.schema import runs, tracked_runs
from etl.fetch.door import Clock, Peer, in_threads
from etl.fetch.messages import Ask, Begin
from etl.ingest.commits import BatchStore
from etl.ingest.context import IngestContext, PassHooks
from etl.ingest.held_runs import HeldRuns
from etl.ingest.interrupt import Interrupt
from etl.ingest.one_pass import PassOrder, run_pass
from etl.ingest.tally import Tally
from etl.ledger import leases, standings, tracking
from etl.ledger.lifecycle import State
from etl.ledger.tracking import Entry
from etl.sandbox.api import READ_KEY
from etl.sandbox.server import Sandbox, running
from etl.sandbox.world import Shape, World
from etl.sandbox.world_clock import Clock as WorldClock
from etl.secrets.keys import DEFAULT_SOURCE
from tests.support.dump import DECISIONS, LEDGER, dump
from tests.support.program import program

NOW = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
MANY = 1000


@contextmanager
def sandbox_of(world: World, latency_ms: float = 0) -> Iterator[Sandbox]:
    with running(world, WorldClock(NOW, speed=0), latency_ms=latency_ms) as sandbox:
        yield sandbox


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    """Give an engine, and close its connections afterwards."""
    engine = database.connect(url)
    try:
        yield engine
    finally:
        engine.dispose()


def a_list(folder: Path, world: World) -> Path:
    path = folder / "runs.txt"
    path.write_text("\n".join(run.run_id for run in world.runs(NOW)))
    return path


def test_a_pass_asks_only_for_runs_that_can_have_changed(database_url: str, tmp_path: Path) -> None:
    """Of 100 settled and 3 running runs, the second pass asks for exactly the 3."""
    key_file = tmp_path / "key"
    key_file.write_text(READ_KEY)
    with ExitStack() as stack:
        sandbox = stack.enter_context(sandbox_of(World(end=NOW, runs=300)))
        engine = stack.enter_context(opened(database_url))
        database.prepare(engine)
        config = Config(
            sources={DEFAULT_SOURCE: Source(sandbox.url, key_file=str(key_file))},
            database=Database(database_url),
            api=Api(sandbox.url, max_requests_per_second=0),
        )
        with database.writing(engine) as connection:
            chosen = [*_over(sandbox.world)[:100], *_going(sandbox.world)[:3]]
            tracking.track(connection, [Entry(run_id, None, None, {}) for run_id in chosen], NOW)
        _pass(IngestContext(engine, config, sandbox.clock.now, in_threads))
        with database.reading(engine) as connection:
            by_state = standings.standings(connection, NOW).by_state
        assert (by_state["settled"], by_state["running"]) == (100, 3)
        sandbox.requests.clear()
        # The three are still going: the sandbox's clock stands, only ours goes on.
        later = NOW + timedelta(hours=5)
        _pass(IngestContext(engine, config, lambda: later, in_threads))
        assert sorted(sandbox.requests) == sorted(_going(sandbox.world)[:3])
        assert sandbox.requests.total() == 3


def _pass(ingest: IngestContext, interrupt: Interrupt | None = None) -> Tally:
    hooks = PassHooks(lambda _done, _total: None, interrupt or Interrupt())
    return run_pass(ingest, PassOrder("test"), hooks)


def test_a_pass_that_is_stopped_while_it_claims_gives_back_its_claims(
    database_url: str, tmp_path: Path
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(READ_KEY)
    interrupt = Interrupt()

    def stopped_while_claiming(begin: Begin, now: Clock) -> Peer:
        """Fetch in threads; the first claim is made after the signal."""
        peer = in_threads(begin, now)
        assert isinstance(peer.receive(), Ask)
        interrupt.set(signal.SIGTERM)
        peer.give([])
        return peer

    with ExitStack() as stack:
        sandbox = stack.enter_context(sandbox_of(World(end=NOW, runs=20)))
        engine = stack.enter_context(opened(database_url))
        database.prepare(engine)
        config = Config(
            sources={DEFAULT_SOURCE: Source(sandbox.url, key_file=str(key_file))},
            database=Database(database_url),
        )
        with database.writing(engine) as connection:
            entries = [Entry(run.run_id, None, None, {}) for run in sandbox.world.runs(NOW)]
            tracking.track(connection, entries, clock.now())
        ingest = IngestContext(engine, config, clock.now, stopped_while_claiming)
        assert _pass(ingest, interrupt).exit_code == 143
        with database.reading(engine) as connection:
            leased = select(tracked_runs.c.run_id).where(tracked_runs.c.lease_owner.is_not(None))
            assert connection.scalars(leased).all() == []


def _over(world: World) -> list[str]:
    """Return runs that ended well before now, as their answers tell, with a final status."""
    found = []
    for run in world.runs(NOW - timedelta(days=2)):
        result = decode(world.answer(run.run_id, NOW) or b"").result
        tells_its_end = {"started_at", "duration"} <= result.keys()
        if tells_its_end and result.get("status") in {"passed", "failed", "aborted", "completed"}:
            found.append(run.run_id)
    return found


def _going(world: World) -> list[str]:
    return [run.run_id for run in world.runs(NOW) if run.ended_at > NOW]


def test_four_processes_fetch_each_run_once(database_url: str, tmp_path: Path) -> None:
    world = World(end=NOW, runs=MANY, shape=Shape(environments=2, tests=3))
    listed = a_list(tmp_path, world)
    with sandbox_of(world) as sandbox, ExitStack() as stack:
        archiver = program(tmp_path, database_url, sandbox.url)
        assert archiver.run("track", "--from", listed).exit_code == 0
        processes = [stack.enter_context(archiver.started("ingest")) for _ in range(4)]
        ends = [(*process.communicate(timeout=120), process.returncode) for process in processes]
        assert [end[2] for end in ends] == [0] * 4, ends
        assert set(sandbox.requests.values()) == {1}
        assert len(sandbox.requests) == MANY
        alone = program(tmp_path, f"sqlite:///{tmp_path}/alone.db", sandbox.url)
        assert alone.run("ingest", "--from", listed).exit_code == 0
    together = _timeless(database_url)
    assert together == _timeless(f"sqlite:///{tmp_path}/alone.db")


def _timeless(url: str) -> dict[str, list[dict[str, Any]]]:
    """Dump an archive without the times at which it was made."""
    ours = {
        "archived_at", "changed_at", "row_changed_at", "context_changed_at", "observed_at",
        "fetched_at", "first_seen_at", "decided_at", "measured_at", "digest",
    }  # fmt: skip
    with opened(url) as engine, database.reading(engine) as connection:
        tables = dump(connection, leave_out=(*LEDGER, *DECISIONS))
    return {
        name: [{key: row[key] for key in row.keys() - ours} for row in rows]
        for name, rows in tables.items()
    }


def test_a_killed_pass_is_taken_over(database_url: str, tmp_path: Path) -> None:
    world = World(end=NOW, runs=120, shape=Shape(environments=1, tests=2))
    with sandbox_of(world, latency_ms=100) as sandbox:
        archiver = program(tmp_path, database_url, sandbox.url).given(
            RESULT_ARCHIVER__POLLING__LEASE_FOR="2s"
        )
        assert archiver.run("track", "--from", a_list(tmp_path, world)).exit_code == 0
        with archiver.started("ingest") as process:
            _wait_for(lambda: sandbox.requests.total() > 20)
            os.kill(process.pid, signal.SIGKILL)
            process.wait(timeout=10)
        assert _archived(database_url) < 120
        time.sleep(2.1)
        done = archiver.run("ingest", "--json")
        assert done.exit_code == 0
        assert _archived(database_url) == 120
        assert max(sandbox.requests.values()) <= 2
    with opened(database_url) as engine, database.reading(engine) as connection:
        glance = standings.standings(connection, clock.now())
    assert (glance.by_state["settled"], glance.leased, glance.due) == (120, 0, 0)


def _wait_for(happened: Any, patience_s: float = 30) -> None:
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def _archived(url: str) -> int:
    with opened(url) as engine, database.reading(engine) as connection:
        return connection.scalar(select(func.count()).select_from(runs)) or 0


def test_two_days_of_runs_are_followed_as_announced(sqlite_url: str) -> None:
    """The month of `make month`, in short: all content is right, nothing is asked for in vain."""
    found = month.simulate(days=1, world_runs=400, url=sqlite_url)
    assert found.runs > 20
    assert found.broken == []
    assert found.changes <= found.requests < 5 * found.changes


STATUSES = ["passed", "failed", "aborted", "completed", "unresolved", "pending", "", None, "odd"]


@settings(max_examples=40, stateful_step_count=30, deadline=None)
class AnyLife(RuleBasedStateMachine):
    """No answers, errors, crashes and clock jumps leave a run that nobody will look after."""

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.now = NOW
        self.engine = database.connect(f"sqlite:///{folder}/archive.db")
        self.stack.callback(self.engine.dispose)
        database.prepare(self.engine)
        self.polling = Polling(max_attempts=3)
        config = Config(sources={}, polling=self.polling)
        self.ingest = IngestContext(self.engine, config, lambda: self.now)
        self.hands: list[tuple[HeldRuns, list[Target]]] = []
        self.tracked = 0

    @rule()
    def track(self) -> None:
        self.tracked += 1
        with database.writing(self.engine) as connection:
            tracking.track(connection, [Entry(f"run {self.tracked}", None, None, {})], self.now)

    @rule(limit=st.integers(1, 5))
    def claim(self, limit: int) -> None:
        held = HeldRuns(self.engine, self.polling, self.now, self.ingest.now)
        self.hands.append((held, held.claim(limit)))

    @rule(
        which=st.integers(0, 9),
        status=st.sampled_from(STATUSES),
        age=st.timedeltas(timedelta(0), timedelta(days=40)),
    )
    def answer(self, which: int, status: str | None, age: timedelta) -> None:
        started_at = (self.now - age).isoformat()
        body = compress(b"{}", "00")
        document = {"result": {"status": status, "started_at": started_at, "duration": 1000}}
        payload = decode(json.dumps(document).encode())
        self._end(
            which,
            lambda claim: Answer(
                claim.run_id,
                claim.source,
                self.now,
                body,
                payload.content_hash,
                rows := normalize(claim.run_id, payload, UTC),
                name_tests(rows.tests),
            ),
        )

    @rule(which=st.integers(0, 9))
    def miss(self, which: int) -> None:
        self._end(which, lambda claim: Missing(claim.run_id, "404", self.now))

    @rule(which=st.integers(0, 9))
    def refuse(self, which: int) -> None:
        self._end(which, lambda claim: Denied(claim.run_id, "403"))

    @rule(which=st.integers(0, 9), wait_s=st.none() | st.floats(0, 10**6))
    def trouble(self, which: int, wait_s: float | None) -> None:
        error = TransientError(Reason.HTTP_STATUS, "500", wait_s, False, random.random())
        self._end(which, lambda claim: Postponed(claim.run_id, error))

    @rule(which=st.integers(0, 9), is_internal=st.booleans())
    def reject(self, which: int, is_internal: bool) -> None:
        code = Reason.INTERNAL_ERROR if is_internal else Reason.UNREADABLE
        self._end(
            which, lambda claim: Reject(claim.run_id, self.now, 200, code, "page", b"<", "00")
        )

    @rule(which=st.integers(0, 9))
    def crash(self, which: int) -> None:
        if self.hands:
            self.hands.pop(which % len(self.hands))

    @rule(which=st.integers(0, 9))
    def give_back(self, which: int) -> None:
        if self.hands:
            held, _ = self.hands.pop(which % len(self.hands))
            with database.writing(self.ingest.engine) as connection:
                leases.release(connection, held.owner)

    @rule(by=st.timedeltas(timedelta(days=-2), timedelta(days=9)))
    def let_the_clock_jump(self, by: timedelta) -> None:
        self.now = clock_cut(self.now + by)

    @rule()
    def retry(self) -> None:
        with database.writing(self.engine) as connection:
            tracking.retry(connection, None, self.now)

    def _end(self, which: int, outcome: Any) -> None:
        if not self.hands:
            return
        held, targets = self.hands.pop(which % len(self.hands))
        BatchStore(self.ingest, held).commit([outcome(target) for target in targets], 0)

    @invariant()
    def every_run_is_looked_after(self) -> None:
        with database.reading(self.engine) as connection:
            rows = connection.execute(select(tracked_runs)).all()
        assert len(rows) == self.tracked
        for row in rows:
            is_done = row.state in {State.SETTLED, State.FAILED}
            assert is_done == (row.due_at is None), row
            assert (row.lease_owner is None) == (row.lease_until is None), row
            # A lease is bounded: whoever holds it, the run is free again in time.
            if row.lease_until is not None:
                assert row.lease_until - self.now <= self.polling.lease_for + timedelta(days=60), (
                    row
                )

    def teardown(self) -> None:
        self.stack.close()


def clock_cut(moment: datetime) -> datetime:
    """Cut a moment to milliseconds, as the clock does."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


TestAnyLife = pytest.mark.timeout(300)(AnyLife.TestCase)
