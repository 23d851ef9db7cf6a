import multiprocessing
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Select, event, select, text, update

from etl.answers.outcome import Reason
from etl.db.database import connect, prepare, writing
from etl.db.schema import QUEUED, STATES, labels, tracked_runs
from etl.ledger import leases, standings, tracking
from etl.ledger.leases import Lease
from etl.ledger.lifecycle import Standing, State
from etl.ledger.standings import FailedCount, Standings
from etl.ledger.tracking import Entry, Tracked
from etl.ledger.verdicts import Claim, Recorded
from tests.support.dump import dump, rows_of

NOW = datetime(2024, 3, 1, 12, 0, 0, 123000, UTC)


def at(minutes: int) -> datetime:
    return NOW + timedelta(minutes=minutes)


OURS = Lease("us", NOW, at(10))
THEIRS = Lease("them", NOW, at(10))


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with writing(engine) as connection:
        yield connection


def entry(
    run_id: str, source: str | None = None, read_token: str | None = None, **given: str
) -> Entry:
    return Entry(run_id, source, read_token, given)


def track(connection: Connection, *run_ids: str) -> Tracked:
    return tracking.track(connection, [entry(run_id) for run_id in run_ids], NOW)


def put(connection: Connection, run_id: str, **columns: Any) -> None:
    """Track a run, and set columns of its row."""
    track(connection, run_id)
    changes = update(tracked_runs).where(tracked_runs.c.run_id == run_id).values(**columns)
    connection.execute(changes)


def rows(connection: Connection, *names: str) -> dict[str, tuple[Any, ...]]:
    """Return columns of the ledger by run ID."""
    return {
        row["run_id"]: tuple(row[name] for name in names)
        for row in rows_of(connection, tracked_runs)
    }


def claim(connection: Connection, limit: int, lease: Lease = OURS) -> list[str]:
    """Claim what is due at the lease's start; return the run IDs."""
    due = leases.due(lease.since, lease.since)
    return [each.run_id for each in leases.claim(connection, lease, due, limit)]


# --- track ----------------------------------------------------------------------------------


def test_a_new_run_is_queued_and_due_now(connection: Connection) -> None:
    track(connection, "run-1")
    assert rows_of(connection, tracked_runs) == [
        {
            "run_id": "run-1",
            "source": "default",
            "state": "queued",
            "due_at": NOW,
            "attempts": 0,
            "reason": None,
            "last_error": None,
            "failing_since": None,
            "first_tracked_at": NOW,
            "last_fetched_at": None,
            "fetches": 0,
            "lease_owner": None,
            "lease_until": None,
            "read_token": None,
            "gone_at": None,
            "context_changed_at": None,
        }
    ]


def test_new_and_known_runs_are_counted_once_each(connection: Connection) -> None:
    assert track(connection, "run-1", "run-2", "run-1") == Tracked(new=2, known=0)
    assert track(connection, "run-3", "run-2", "run-3", "run-2") == Tracked(new=1, known=1)
    assert track(connection) == Tracked(new=0, known=0)


def test_a_list_longer_than_a_statement_can_name_is_tracked_whole(connection: Connection) -> None:
    run_ids = [f"run-{number}" for number in range(1201)]
    assert track(connection, *run_ids) == Tracked(new=1201, known=0)
    assert track(connection, *run_ids, "run-new") == Tracked(new=1, known=1201)
    assert tracking.unknown(connection, [*run_ids, "run-newer"]) == ["run-newer"]
    assert len(standings.states(connection, run_ids)) == 1201


def test_a_known_run_takes_over_what_is_given_anew(connection: Connection) -> None:
    tracking.track(connection, [entry("run-1", "old", "old token", branch="a", build="1")], NOW)
    tracking.track(connection, [entry("run-1", "new", "new token", branch="b", commit="c")], at(1))
    assert rows(connection, "source", "read_token") == {"run-1": ("new", "new token")}
    kept = [(row["name"], row["value"]) for row in rows_of(connection, labels)]
    assert kept == [("branch", "b"), ("build", "1"), ("commit", "c")]


def test_a_known_run_keeps_what_is_not_given_anew(connection: Connection) -> None:
    tracking.track(connection, [entry("run-1", "ours", "token", branch="a")], NOW)
    once = dump(connection)
    tracking.track(connection, [entry("run-1")], at(1))
    assert dump(connection) == once
    tracking.track(connection, [entry("run-1", read_token="new token")], at(1))
    tracking.track(connection, [entry("run-1", source="theirs")], at(1))
    assert rows(connection, "source", "read_token") == {"run-1": ("theirs", "new token")}


def test_tracking_a_run_again_leaves_its_state_alone(connection: Connection) -> None:
    columns = {
        "state": "failed",
        "due_at": None,
        "attempts": 3,
        "last_error": "the API answered 404",
        "last_fetched_at": at(-5),
        "fetches": 7,
        "lease_owner": "them",
        "lease_until": at(5),
    }
    put(connection, "run-1", **columns)
    tracking.track(connection, [entry("run-1", "new", "token")], at(1))
    assert rows(connection, *columns, "first_tracked_at") == {"run-1": (*columns.values(), NOW)}


def test_the_last_of_two_entries_for_a_run_counts(connection: Connection) -> None:
    tracking.track(
        connection, [entry("run-1", "a", branch="a"), entry("run-1", "b", branch="b")], NOW
    )
    assert rows(connection, "source") == {"run-1": ("b",)}
    assert [row["value"] for row in rows_of(connection, labels)] == ["b"]


def test_two_lists_of_the_same_runs_do_not_block_each_other(postgresql_url: str) -> None:
    """PostgreSQL gives up on two transactions that wait for each other's rows."""
    engine = connect(postgresql_url)
    prepare(engine)
    run_ids = [f"run-{number}" for number in range(1500)]

    def track_all(order: Sequence[str]) -> int:
        with writing(engine) as connection:
            track(connection, *order)
            return len(standings.states(connection, None))

    with ThreadPoolExecutor(2) as threads:
        counted = list(threads.map(track_all, [run_ids, run_ids[::-1]]))
    engine.dispose()
    assert counted == [1500, 1500]


# --- claim ----------------------------------------------------------------------------------


def test_a_claim_says_all_that_a_fetch_needs_to_know(connection: Connection) -> None:
    standing = Standing(State.RETRYING, at(-1), 2, Reason.NO_ANSWER, "timed out")
    columns = {"source": "ours", "read_token": "token", "last_fetched_at": at(-9), "fetches": 3}
    put(connection, "run-1", **columns, **standing._asdict())
    assert leases.claim(connection, OURS, leases.due(NOW, NOW), 1) == [
        Claim(
            run_id="run-1",
            source="ours",
            read_token="token",
            first_tracked_at=NOW,
            last_fetched_at=at(-9),
            fetches=3,
            standing=standing,
            fingerprint=None,
        )
    ]
    assert rows(connection, "lease_owner", "lease_until") == {"run-1": ("us", at(10))}


def test_only_what_is_due_is_claimed(connection: Connection) -> None:
    put(connection, "past", due_at=at(-1))
    put(connection, "now", due_at=NOW)
    put(connection, "future", due_at=NOW + timedelta(milliseconds=1))
    put(connection, "never", due_at=None)
    assert claim(connection, 9) == ["now", "past"]


def test_no_more_is_claimed_than_asked_for(connection: Connection) -> None:
    track(connection, *"abcde")
    assert claim(connection, 2) == ["a", "b"]
    assert claim(connection, 2) == ["c", "d"]
    assert claim(connection, 2) == ["e"]
    assert claim(connection, 2) == []


def in_order_of_claiming(connection: Connection) -> list[str]:
    return [run_id for _ in range(9) for run_id in claim(connection, 1)]


def test_new_runs_and_those_still_going_come_before_those_that_might_have_changed(
    connection: Connection,
) -> None:
    for minutes, state in enumerate(["watching", "retrying", "running", "queued"]):
        put(connection, state, state=state, due_at=at(minutes - 9))
    assert in_order_of_claiming(connection) == ["queued", "running", "retrying", "watching"]


def test_runs_of_a_state_come_by_their_wait_as_a_share_of_their_interval(
    connection: Connection,
) -> None:
    def watched(run_id: str, last_fetched: int, due: int) -> None:
        times = {"last_fetched_at": at(last_fetched), "due_at": at(due)}
        put(connection, run_id, state="watching", **times)

    watched("late by a tenth", -110, -10)
    watched("late by half", -15, -5)
    watched("late by itself", -4, -2)
    assert in_order_of_claiming(connection) == [
        "late by itself",
        "late by half",
        "late by a tenth",
    ]


def test_runs_that_are_equally_urgent_come_by_due_time_then_run_id(connection: Connection) -> None:
    put(connection, "c", due_at=at(-1))
    put(connection, "b", due_at=at(-1))
    put(connection, "a", due_at=NOW)
    assert in_order_of_claiming(connection) == ["b", "c", "a"]


def test_claims_of_any_size_come_in_the_order_of_urgency(connection: Connection) -> None:
    """The order of all due runs, sorted at once, is that of claims that sort no queue."""
    dice = random.Random(7)
    for number in range(60):
        state = dice.choice(["queued", "queued", "running", "retrying", "watching"])
        put(
            connection,
            f"run-{dice.randrange(10**6):06}-{number}",
            state=state,
            due_at=at(-dice.randrange(5)),
            last_fetched_at=None if state == "queued" else at(-5 - dice.randrange(90)),
            read_token=dice.choice([None, "token"]),
        )
    in_order = list(standings.due_runs(connection, NOW))
    assert len(in_order) == 60
    place = 0
    while place < 60:
        size = dice.randrange(1, 9)
        assert claim(connection, size) == sorted(in_order[place : place + size])
        place += size


def plan_of(connection: Connection, query: Select[Any]) -> str:
    """Return the database's plan for a query, with its parameters as they are."""
    explain = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"

    def ask(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> Any:
        return f"{explain} {statement}", parameters

    event.listen(connection, "before_cursor_execute", ask, retval=True)
    try:
        return str([tuple(row) for row in connection.execute(query).cursor.fetchall()])
    finally:
        event.remove(connection, "before_cursor_execute", ask)


@pytest.mark.parametrize("size", [1, 1000])
def test_a_claim_of_queued_runs_sorts_no_queue(connection: Connection, size: int) -> None:
    """By the plan of the statement: an index has them in order."""
    track(connection, *(f"run-{number}" for number in range(3000)))
    if connection.dialect.name == "postgresql":
        connection.execute(text("ANALYZE tracked_runs"))
    for is_queued in QUEUED:
        due = leases.due(NOW, NOW)
        order = (tracked_runs.c.due_at, tracked_runs.c.run_id)
        query = select(tracked_runs.c.run_id).where(is_queued, due).order_by(*order).limit(size)
        plan = plan_of(connection, query)
        assert "ix_tracked_runs_queued" in plan
        assert "Sort" not in plan
        assert "TEMP B-TREE" not in plan


def test_a_run_that_is_held_is_not_claimed_until_its_lease_runs_out(connection: Connection) -> None:
    track(connection, "run-1")
    assert claim(connection, 1, Lease("them", NOW, at(10))) == ["run-1"]
    assert claim(connection, 1, Lease("us", at(9), at(19))) == []
    assert claim(connection, 1, Lease("us", at(10), at(20))) == ["run-1"]
    assert rows(connection, "lease_owner", "lease_until") == {"run-1": ("us", at(20))}


def test_a_claim_does_not_wait_for_another_that_is_under_way(postgresql_url: str) -> None:
    engine = connect(postgresql_url)
    prepare(engine)
    with writing(engine) as connection:
        track(connection, *"abcd")
    with writing(engine) as ours, writing(engine) as theirs:
        claimed = [claim(ours, 2), claim(theirs, 9, THEIRS)]
    engine.dispose()
    assert claimed == [["a", "b"], ["c", "d"]]


def claim_all(url: str, owner: str) -> list[str]:
    """Claim a few runs at a time, each time in a transaction of its own, until there are none."""
    engine = connect(url)
    claimed: list[str] = []
    while True:
        with writing(engine) as connection:
            taken = claim(connection, 3, Lease(owner, NOW, at(10)))
        if not taken:
            engine.dispose()
            return claimed
        claimed += taken


def run_ids_claimed_by(executor: Executor, url: str) -> list[str]:
    """Return what two workers claimed between them, in order; twice what they both did."""
    with executor:
        claimed = executor.map(claim_all, [url] * 2, ["us", "them"])
        return sorted(run_id for each in claimed for run_id in each)


def test_two_threads_never_claim_the_same_run(engine: Engine, database_url: str) -> None:
    run_ids = sorted(f"run-{number}" for number in range(100))
    with writing(engine) as connection:
        track(connection, *run_ids)
    assert run_ids_claimed_by(ThreadPoolExecutor(2), database_url) == run_ids


def test_two_processes_never_claim_the_same_run(sqlite_url: str) -> None:
    engine = connect(sqlite_url)
    prepare(engine)
    run_ids = sorted(f"run-{number}" for number in range(100))
    with writing(engine) as connection:
        track(connection, *run_ids)
    engine.dispose()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports once for both
    processes = ProcessPoolExecutor(2, context)
    assert run_ids_claimed_by(processes, sqlite_url) == run_ids


# --- what is held, and how it ends ----------------------------------------------------------


def held(connection: Connection, *run_ids: str) -> set[str]:
    return leases.lock_held(connection, "us", run_ids, lambda: NOW)


def test_a_run_is_held_by_who_claimed_it_last(connection: Connection) -> None:
    track(connection, *"abcd")
    claim(connection, 2)
    claim(connection, 1, THEIRS)
    assert held(connection, "a", "c", "d", "unknown") == {"a"}
    claim(connection, 1, Lease("them", at(10), at(20)))
    assert held(connection, "a", "b") == {"b"}


def test_a_lease_that_has_expired_holds_nothing(connection: Connection) -> None:
    put(connection, "run-1", lease_owner="us", lease_until=NOW)
    put(connection, "run-2", lease_owner="us", lease_until=at(1))
    assert held(connection, "run-1", "run-2") == {"run-2"}


def test_a_lease_that_has_expired_is_not_renewed(connection: Connection) -> None:
    put(connection, "run-1", lease_owner="us", lease_until=NOW)
    put(connection, "run-2", lease_owner="us", lease_until=at(1))
    leases.renew(connection, OURS)
    assert rows(connection, "lease_until") == {"run-1": (NOW,), "run-2": (at(10),)}


def test_what_is_held_cannot_be_claimed_before_it_is_stored(postgresql_url: str) -> None:
    engine = connect(postgresql_url)
    prepare(engine)
    with writing(engine) as connection:
        put(connection, "run-1", lease_owner="us", lease_until=at(1))
    with writing(engine) as ours, writing(engine) as theirs:
        assert held(ours, "run-1") == {"run-1"}
        assert claim(theirs, 1, Lease("them", at(2), at(12))) == []
    engine.dispose()


def test_a_recorded_run_stands_as_told_and_is_free(connection: Connection) -> None:
    track(connection, "run-1", "run-2", "run-3")
    claim(connection, 2)
    failed = Standing(State.FAILED, None, 4, Reason.NOT_FOUND, "the API answered 404")
    settled = Standing(State.WATCHING, at(60))
    leases.record(connection, [Recorded("run-1", settled, at(1)), Recorded("run-2", failed, None)])
    names = ("state", "due_at", "attempts", "reason", "last_error", "last_fetched_at", "fetches")
    assert rows(connection, *names, "lease_owner", "lease_until") == {
        "run-1": ("watching", at(60), 0, None, None, at(1), 1, None, None),
        "run-2": ("failed", None, 4, "not_found", "the API answered 404", None, 1, None, None),
        "run-3": ("queued", NOW, 0, None, None, None, 0, None, None),
    }


def test_a_failure_keeps_the_time_of_the_last_accepted_answer(connection: Connection) -> None:
    put(connection, "run-1", last_fetched_at=at(-5), fetches=1)
    leases.record(
        connection,
        [Recorded("run-1", Standing(State.RETRYING, at(1), 1, Reason.NO_ANSWER, "x"), None)],
    )
    leases.record(connection, [])
    assert rows(connection, "last_fetched_at", "fetches") == {"run-1": (at(-5), 2)}


def test_a_lease_is_renewed_for_all_that_its_owner_holds(connection: Connection) -> None:
    track(connection, *"abc")
    claim(connection, 2)
    claim(connection, 1, THEIRS)
    leases.renew(connection, Lease("us", at(5), at(15)))
    assert rows(connection, "lease_until") == {"a": (at(15),), "b": (at(15),), "c": (at(10),)}


def test_a_released_run_is_as_due_as_it_was(connection: Connection) -> None:
    track(connection, *"abc")
    before = rows_of(connection, tracked_runs)
    claim(connection, 2)
    leases.release(connection, "us")
    assert rows_of(connection, tracked_runs) == before


def test_a_release_leaves_the_runs_of_others_alone(connection: Connection) -> None:
    track(connection, "run-1")
    claim(connection, 1, THEIRS)
    leases.release(connection, "us")
    assert rows(connection, "lease_owner") == {"run-1": ("them",)}


# --- asking for more ------------------------------------------------------------------------


def test_any_run_can_be_made_due(connection: Connection) -> None:
    put(connection, "settled", state="settled", due_at=None)
    put(connection, "watching", state="watching", due_at=at(60))
    put(connection, "other", state="settled", due_at=None)
    assert tracking.make_due(connection, ["settled", "watching", "unknown"], at(1)) == 2
    assert rows(connection, "state", "due_at") == {
        "other": ("settled", None),
        "settled": ("settled", at(1)),
        "watching": ("watching", at(1)),
    }


def test_all_runs_but_the_failed_can_be_made_due(connection: Connection) -> None:
    """Failed is never, until `retry` (DESIGN, section 4); one that is named is meant."""
    put(connection, "settled", state="settled", due_at=None)
    put(connection, "failed", state="failed", due_at=None)
    assert tracking.make_due(connection, None, at(1)) == 1
    assert tracking.make_due(connection, [], at(2)) == 0
    assert rows(connection, "due_at") == {"failed": (None,), "settled": (at(1),)}
    assert tracking.make_due(connection, ["failed"], at(3)) == 1
    assert rows(connection, "due_at") == {"failed": (at(3),), "settled": (at(1),)}


def some_failed_runs(connection: Connection) -> None:
    failed = {"state": "failed", "due_at": None, "attempts": 5, "last_error": "gone"}
    put(connection, "never fetched", **failed)
    put(connection, "fetched before", **failed, last_fetched_at=at(-5))
    put(connection, "settled", state="settled", due_at=None)


def test_failed_runs_start_over_when_they_are_retried(connection: Connection) -> None:
    some_failed_runs(connection)
    assert tracking.retry(connection, None, at(1)) == 2
    assert rows(connection, "state", "due_at", "attempts", "last_error") == {
        "fetched before": ("retrying", at(1), 0, None),
        "never fetched": ("queued", at(1), 0, None),
        "settled": ("settled", None, 0, None),
    }


def test_only_the_named_runs_are_retried(connection: Connection) -> None:
    some_failed_runs(connection)
    assert tracking.retry(connection, ["settled", "never fetched", "unknown"], at(1)) == 1
    assert tracking.retry(connection, [], at(1)) == 0
    assert standings.states(connection, None) == {
        "fetched before": "failed",
        "never fetched": "queued",
        "settled": "settled",
    }


# --- questions ------------------------------------------------------------------------------


def test_runs_that_are_not_tracked_are_named_in_the_order_asked_for(connection: Connection) -> None:
    track(connection, "b")
    assert tracking.unknown(connection, ["c", "b", "a"]) == ["c", "a"]
    assert tracking.unknown(connection, []) == []


def test_states_are_those_of_the_runs_asked_for(connection: Connection) -> None:
    put(connection, "a", state="settled")
    track(connection, "b", "c")
    assert standings.states(connection, ["c", "a", "unknown"]) == {"a": "settled", "c": "queued"}
    assert standings.states(connection, []) == {}


def test_the_runs_that_are_due_and_free_come_in_the_order_of_claiming(
    connection: Connection,
) -> None:
    put(connection, "watching", state="watching", due_at=at(-9))
    put(connection, "queued", due_at=at(-1))
    put(connection, "held", lease_owner="them", lease_until=at(1))
    put(connection, "held once", lease_owner="them", lease_until=NOW)
    put(connection, "later", due_at=at(1))
    assert list(standings.due_runs(connection, NOW).items()) == [
        ("queued", "queued"),
        ("held once", "queued"),
        ("watching", "watching"),
    ]


def test_the_next_run_that_is_not_over_tells_when_to_go_on(connection: Connection) -> None:
    assert standings.next_going(connection) is None
    put(connection, "watching", state="watching", due_at=at(1))
    put(connection, "settled", state="settled", due_at=at(2))
    assert standings.next_going(connection) is None
    for minutes, state in [(9, "retrying"), (8, "running"), (7, "queued")]:
        put(connection, state, state=state, due_at=at(minutes))
        assert standings.next_going(connection) == at(minutes)


def test_a_source_lacks_permission_that_was_denied_a_run_and_never_read_one(
    connection: Connection,
) -> None:
    denied = {"state": "failed", "reason": "denied", "last_error": "no read permission"}
    put(connection, "denied", **denied, source="without")
    put(connection, "with token", **denied, source="other", read_token="token")
    put(connection, "denied once", **denied, source="with")
    put(connection, "read", source="with", last_fetched_at=NOW)
    put(connection, "missing", state="failed", last_error="not found", source="another")
    assert standings.sources_without_permission(connection) == {"without"}


def test_an_empty_ledger_stands_at_nothing(connection: Connection) -> None:
    nothing = dict.fromkeys(STATES, 0)
    assert standings.standings(connection, NOW) == Standings(nothing, {}, [], 0, 0, 0, None, None)


def test_the_ledger_at_a_glance(connection: Connection) -> None:
    put(connection, "late", state="watching", due_at=at(-5))
    put(connection, "held", due_at=at(-1), lease_owner="them", lease_until=at(1))
    put(connection, "held once", lease_owner="them", lease_until=NOW, due_at=None, state="failed")
    put(connection, "next", state="watching", due_at=at(5))
    put(connection, "later", state="running", due_at=at(9))
    put(connection, "never", state="dropped", due_at=None)
    assert standings.standings(connection, NOW) == Standings(
        by_state={
            "queued": 1,
            "running": 1,
            "watching": 2,
            "settled": 0,
            "retrying": 0,
            "failed": 1,
            "dropped": 1,
        },
        by_source={
            "default": {"dropped": 1, "failed": 1, "queued": 1, "running": 1, "watching": 2}
        },
        failed=[FailedCount("default", "", 1)],
        due=2,
        overdue=0,
        leased=1,
        oldest_due_at=at(-5),
        next_due_at=at(5),
    )
