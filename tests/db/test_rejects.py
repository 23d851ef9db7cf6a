"""Promise 8: an answer that could not be accepted is kept, and `replay` tries it again."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, event, insert, select, update

from etl.answers.outcome import Answer, Reason, Reject
from etl.archive import identity, rejects, store
from etl.archive.rejects import KeptReject, decode_reject, keep_rejects, replay_rejects
from etl.archive.verify import verify_archive
from etl.config.loading import load
from etl.config.settings import DEFAULT_RULES, Config, Reporting
from etl.db import schema
from etl.db.archive_settings import begin_rebuild
from etl.db.database import reading, writing
from etl.db.schema import runs, tracked_runs, warnings
from etl.derived import refresh
from etl.derived.plans import Application
from etl.ledger import leases, lifecycle, tracking
from etl.ledger.lifecycle import Standing, State
from etl.ledger.tracking import Entry
from etl.ledger.verdicts import Recorded
from tests.support.dump import dump, rows_of
from tests.support.fake_api import FakeApi, result
from tests.support.histories import a_run, forget_all
from tests.support.program import Program

START = datetime(2024, 3, 1, 18, 0, 0, 123000, UTC)
NOW = START + timedelta(days=9)
PAGE = b"<html>Log in</html>"
PASSED = result(started_at="2024-03-01T12:00:00Z", status="passed").body
OPEN = result(started_at="2024-03-01T12:00:00Z", status="unresolved").body


def after(minutes: int) -> datetime:
    return START + timedelta(minutes=minutes)


@pytest.fixture(scope="module")
def config() -> Config:
    return load(None, {})


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def rejected(run_id: str, at: datetime, body: bytes, code: Reason = Reason.UNREADABLE) -> Reject:
    return Reject(run_id, at, 200, code, "not read", body, sha256(body))


def answered(run_id: str, at: datetime, body: bytes) -> Answer:
    return decode_reject(KeptReject("", run_id, "default", at, body, sha256(body)), UTC)


def accept(connection: Connection, run_id: str, at: datetime, body: bytes, config: Config) -> None:
    """Store an answer as a pass does."""
    saved = store.store_answers(connection, [answered(run_id, at, body)], DEFAULT_RULES)
    standing = lifecycle.after_answer(saved[run_id].archived.seen(START), at, config.polling)
    leases.record(connection, [Recorded(run_id, standing, at)])


def refuse(connection: Connection, run_id: str, at: datetime, body: bytes) -> None:
    """Keep an answer as a pass does whose code fails on it."""
    keep_rejects(connection, [rejected(run_id, at, body, Reason.INTERNAL_ERROR)])
    standing = lifecycle.after_failure(Reason.INTERNAL_ERROR, "internal error")
    leases.record(connection, [Recorded(run_id, standing, None)])


def track(connection: Connection, *run_ids: str) -> None:
    tracking.track(connection, [Entry(run_id, None, None, {}) for run_id in run_ids], START)


def replayed(engine: Engine, config: Config, now: datetime = NOW) -> list[str]:
    """Replay the rejects; return the runs of those that were archived."""
    archived = [each.answer.run_id for each in replay_rejects(engine, config, now)]
    refresh.refresh_marked(engine)
    return archived


def everything(engine: Engine) -> dict[str, Any]:
    with reading(engine) as connection:
        return dump(connection)


def ledger_row(engine: Engine, run_id: str) -> dict[str, Any]:
    with reading(engine) as connection:
        query = select(tracked_runs).where(tracked_runs.c.run_id == run_id)
        return dict(connection.execute(query).mappings().one())


def wrong(engine: Engine) -> list[Any]:
    batches = verify_archive(engine, Reporting())
    return [each for batch in batches for each in (*batch.damage, *batch.differing)]


# --- the same archive, whenever the answers were accepted -----------------------------------


class Seen(NamedTuple):
    """The answers of a run, in the order of their fetches: those from `cut` on were refused."""

    bodies: Sequence[bytes]
    cut: int


def bodies_of(run_id: str) -> st.SearchStrategy[bytes]:
    """Return answers of a run on one of two days, also with an earlier or another plan."""
    fields = st.fixed_dictionaries(
        {
            "status": st.sampled_from(["passed", "unresolved", "pending"]),
            "name": st.sampled_from(["nightly", "weekly"]),
        }
    )
    letters = st.dictionaries(st.sampled_from("ab"), st.sampled_from("PFU"), max_size=2)
    days = st.sampled_from(["2024-02-28T12:00:00Z", "2024-03-01T12:00:00Z", None])
    return st.builds(
        lambda day, tests, own: json.dumps(
            {"result": a_run(day, tests, id=run_id, **own)}
        ).encode(),
        days,
        letters,
        fields,
    )


def seen_of(run_id: str) -> st.SearchStrategy[Seen]:
    bodies = st.lists(bodies_of(run_id), max_size=4, unique=True)
    return st.builds(Seen, bodies, st.integers(0, 4))


def live_through(engine: Engine, config: Config, seen: dict[str, Seen], cut: bool) -> None:
    forget_all(engine)
    with writing(engine) as connection:
        track(connection, *seen)
        for run_id, (bodies, first_refused) in seen.items():
            for minutes, body in enumerate(bodies):
                if cut and minutes >= first_refused:
                    refuse(connection, run_id, after(minutes), body)
                else:
                    accept(connection, run_id, after(minutes), body, config)
    refresh.refresh_marked(engine)


def measured(engine: Engine, config: Config) -> dict[str, Any]:
    """Return all rows, after the test identities are measured; `fetches` counts requests alone."""
    identity.measure_again(engine, {Application("default", "shop")}, NOW, config.reporting.zone)
    refresh.refresh_marked(engine)
    rows = everything(engine)
    for row in rows["tracked_runs"]:
        del row["fetches"]
    return rows


def test_replayed_rejects_give_the_archive_that_would_have_accepted_them(
    engine: Engine, config: Config
) -> None:
    is_sqlite = engine.dialect.name == "sqlite"

    @settings(max_examples=25 if is_sqlite else 10, deadline=None)
    @given(st.fixed_dictionaries({run_id: seen_of(run_id) for run_id in ("a", "b")}))
    def holds(seen: dict[str, Seen]) -> None:
        live_through(engine, config, seen, cut=False)
        wanted = measured(engine, config)
        live_through(engine, config, seen, cut=True)
        replayed(engine, config)
        assert measured(engine, config) == wanted
        assert wrong(engine) == []

    holds()


# --- single facts ---------------------------------------------------------------------------


def test_a_run_that_an_internal_error_has_failed_is_archived_and_followed(
    engine: Engine, config: Config
) -> None:
    with writing(engine) as connection:
        track(connection, "r-1")
        refuse(connection, "r-1", after(5), OPEN)
    assert ledger_row(engine, "r-1")["state"] == "failed"
    assert replayed(engine, config) == ["r-1"]
    row = ledger_row(engine, "r-1")
    assert (row["state"], row["reason"], row["last_error"]) == ("watching", None, None)
    assert (row["last_fetched_at"], row["fetches"]) == (after(5), 1)
    assert row["due_at"] > after(5)
    with reading(engine) as connection:
        assert rows_of(connection, schema.rejects) == []
        assert [row["status"] for row in rows_of(connection, runs)] == ["unresolved"]
    assert wrong(engine) == []


def test_a_second_replay_changes_nothing(engine: Engine, config: Config) -> None:
    with writing(engine) as connection:
        track(connection, "r-1", "r-2")
        refuse(connection, "r-1", after(5), OPEN)
        refuse(connection, "r-2", after(5), PAGE)
    replayed(engine, config)
    before = everything(engine)
    assert replayed(engine, config, NOW + timedelta(days=1)) == []
    assert everything(engine) == before


def test_an_answer_that_still_cannot_be_read_stays(engine: Engine, config: Config) -> None:
    with writing(engine) as connection:
        track(connection, "r-1")
        refuse(connection, "r-1", after(5), PAGE)
    before = everything(engine)
    assert replayed(engine, config) == []
    assert everything(engine) == before


def test_a_bug_that_is_still_there_loses_nothing_and_stops_no_other(
    engine: Engine, config: Config
) -> None:
    def decoder(kept: KeptReject, zone: Any) -> Answer:
        if kept.run_id == "r-1":
            raise KeyError("a bug")
        return decode_reject(kept, zone)

    with writing(engine) as connection:
        track(connection, "r-1", "r-2")
        refuse(connection, "r-1", after(5), PASSED)
        refuse(connection, "r-2", after(5), PASSED)
    archived = [each.answer.run_id for each in replay_rejects(engine, config, NOW, decoder)]
    assert archived == ["r-2"]
    with reading(engine) as connection:
        assert [row["run_id"] for row in rows_of(connection, schema.rejects)] == ["r-1"]


def test_a_value_that_the_database_refuses_stays_a_reject(engine: Engine, config: Config) -> None:
    def decoder(kept: KeptReject, zone: Any) -> Answer:
        answer = decode_reject(kept, zone)
        if kept.run_id == "r-1":
            answer.rows.tests[0] = answer.rows.tests[0]._replace(position=0)  # breaks a CHECK
        return answer

    with writing(engine) as connection:
        track(connection, "r-1", "r-2")
        refuse(connection, "r-1", after(5), PASSED)
        refuse(connection, "r-2", after(5), PASSED)
    archived = [each.answer.run_id for each in replay_rejects(engine, config, NOW, decoder)]
    assert archived == ["r-2"]
    assert ledger_row(engine, "r-1")["state"] == "failed"


@pytest.mark.parametrize("minutes", [5, 6])
def test_an_answer_that_is_not_newer_than_the_archived_one_changes_nothing(
    engine: Engine, config: Config, minutes: int
) -> None:
    with writing(engine) as connection:
        track(connection, "r-1")
        refuse(connection, "r-1", after(5), OPEN)
        accept(connection, "r-1", after(minutes), PASSED, config)
    refresh.refresh_marked(engine)
    before = everything(engine)
    assert replayed(engine, config) == []
    assert everything(engine) == before


def test_the_newest_of_several_rejects_is_the_runs_content(engine: Engine, config: Config) -> None:
    with writing(engine) as connection:
        track(connection, "r-1")
        for minutes, body in enumerate([PASSED, OPEN, PASSED]):
            refuse(connection, "r-1", after(minutes), body)
    assert replayed(engine, config) == ["r-1", "r-1"]
    with reading(engine) as connection:
        [run] = rows_of(connection, runs)
    assert (run["status"], run["changed_at"]) == ("passed", after(2))


def test_a_reject_that_comes_again_after_another_answer_is_the_newer_one(
    engine: Engine, config: Config
) -> None:
    with writing(engine) as connection:
        track(connection, "r-1")
        refuse(connection, "r-1", after(1), OPEN)
        accept(connection, "r-1", after(2), PASSED, config)
        refuse(connection, "r-1", after(3), OPEN)
    assert replayed(engine, config) == ["r-1"]
    assert ledger_row(engine, "r-1")["last_fetched_at"] == after(3)


def test_a_masked_answer_is_archived_with_its_warning(engine: Engine, config: Config) -> None:
    masked = OPEN.replace(b" plan", b" key ***")
    with writing(engine) as connection:
        track(connection, "r-1", "r-2")
        for run_id, body in (("r-1", masked), ("r-2", OPEN)):
            reject = Reject(
                run_id, after(5), 200, Reason.INTERNAL_ERROR, "not read", body, sha256(b"another")
            )
            keep_rejects(connection, [reject])
    assert replayed(engine, config) == ["r-1"]  # the other's body is not the one received
    with reading(engine) as connection:
        assert [row["path"] for row in rows_of(connection, warnings)] == ["$body"]
    assert wrong(engine) == []


def test_a_run_that_the_api_has_lost_since_is_still_gone(engine: Engine, config: Config) -> None:
    with writing(engine) as connection:
        track(connection, "r-1")
        accept(connection, "r-1", after(1), OPEN, config)
        refuse(connection, "r-1", after(2), PASSED)
        leases.mark_gone(connection, ["r-1"], after(3))
    assert replayed(engine, config) == ["r-1"]
    row = ledger_row(engine, "r-1")
    assert (row["gone_at"], row["reason"]) == (after(3), "gone")
    assert wrong(engine) == []


def lease(engine: Engine, run_id: str, until: datetime) -> None:
    with writing(engine) as connection:
        of_run = update(tracked_runs).where(tracked_runs.c.run_id == run_id)
        connection.execute(of_run.values(lease_owner="a pass", lease_until=until))


def test_a_run_that_is_being_fetched_is_left_to_the_next_replay(
    engine: Engine, config: Config
) -> None:
    """Its owner takes an answer equal to the archived one for no change."""
    with writing(engine) as connection:
        track(connection, "r-1")
        refuse(connection, "r-1", after(5), OPEN)
    lease(engine, "r-1", NOW + timedelta(minutes=1))
    before = everything(engine)
    assert replayed(engine, config) == []
    assert everything(engine) == before
    assert replayed(engine, config, NOW + timedelta(minutes=1)) == ["r-1"]
    with writing(engine) as connection:
        assert (
            leases.lock_held(connection, "a pass", ["r-1"], lambda: NOW) == set()
        )  # it comes too late


@contextmanager
def broken_off(engine: Engine, at_statement: int) -> Iterator[list[str]]:
    """Fail before a statement, counted from 0; yield the statements before it."""

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if len(done) == at_statement:
            raise KeyboardInterrupt
        done.append(statement)

    done: list[str] = []
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield done
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_a_replay_that_is_broken_off_loses_nothing(engine: Engine, config: Config) -> None:
    """Wherever it ends: the next one completes it."""
    with writing(engine) as connection:
        track(connection, "r-1")
        refuse(connection, "r-1", after(5), OPEN)
    before = everything(engine)
    statement, is_over, seen = 0, False, []
    while not is_over:
        with broken_off(engine, statement):
            try:
                list(replay_rejects(engine, config, NOW))
                is_over = True
            except KeyboardInterrupt:
                statement += 1
        with reading(engine) as connection:
            left = len(rows_of(connection, schema.rejects))
            stored = len(rows_of(connection, runs))
        assert (left, stored) in {(1, 0), (0, 1)}
        if left:
            assert everything(engine) == before
        seen.append(left)
    assert statement > 10
    assert set(seen) == {0, 1}
    refresh.refresh_marked(engine)
    assert wrong(engine) == []


def test_many_rejects_are_read_page_by_page(engine: Engine, config: Config) -> None:
    run_ids = [f"r-{number}" for number in range(rejects.KEYS_AT_ONCE + 2)]
    with writing(engine) as connection:
        track(connection, *run_ids)
        keep_rejects(connection, [rejected(run_id, after(5), PAGE) for run_id in run_ids[1:-1]])
        keep_rejects(connection, [rejected(run_ids[0], after(5), PASSED)])
        keep_rejects(connection, [rejected(run_ids[-1], after(5), PASSED)])
    assert sorted(replayed(engine, config)) == sorted([run_ids[0], run_ids[-1]])


# --- the command ----------------------------------------------------------------------------


def a_reject(engine: Engine, run_id: str, code: Reason, body: bytes) -> None:
    """Track a run that was given up with a kept answer."""
    with writing(engine) as connection:
        track(connection, run_id)
        keep_rejects(connection, [rejected(run_id, after(5), body, code)])
        standing = Standing(State.FAILED, None, 0, code, "given up")
        leases.record(connection, [Recorded(run_id, standing, None)])


def test_the_command_lists_and_archives_rejects(
    engine: Engine, archiver: Program, api: FakeApi
) -> None:
    a_reject(engine, "r-1", Reason.INTERNAL_ERROR, PASSED)
    a_reject(engine, "r-2", Reason.UNREADABLE, OPEN)
    a_reject(engine, "r-3", Reason.UNREADABLE, PAGE)
    before = everything(engine)
    place = "rejects (run {}, fetched_at 2024-03-01 18:05:00.123): {}"
    done = archiver.call("replay", "--dry-run")
    assert (done.exit_code, done.stdout.splitlines()) == (
        0,
        [
            place.format("r-1", "would be archived"),
            place.format("r-2", "would be archived"),
            (
                "0 runs read: 0 rows in 0 runs would be changed; 0 damaged;"
                " 2 rejects would be archived"
            ),
        ],
    )
    assert archiver.call("replay", "--dry-run", "--json").json()["rejects"]["count"] == 2
    assert everything(engine) == before
    done = archiver.call("replay")
    assert (done.exit_code, done.stdout.splitlines()) == (
        0,
        [
            place.format("r-1", "archived"),
            place.format("r-2", "archived"),
            "2 runs read: 0 rows in 0 runs changed; 0 damaged; 2 rejects archived",
        ],
    )
    assert archiver.call("replay", "--json").json()["rejects"] == {"count": 0, "first": []}
    assert archiver.call("verify").exit_code == 0
    assert archiver.call("status", "--failed", "--json").json()["failed"][0]["run_id"] == "r-3"
    assert api.requests.total() == 0
    with reading(engine) as connection:
        assert rows_of(connection, schema.dirty_marks) == []
        assert len(rows_of(connection, schema.daily_results)) == 1


def test_the_command_archives_a_reject_after_a_whole_answer_is_damaged(
    engine: Engine, archiver: Program
) -> None:
    a_reject(engine, "r-1", Reason.INTERNAL_ERROR, PASSED)
    with writing(engine) as connection:
        track(connection, "r-0")
        connection.execute(
            insert(schema.payloads).values(
                run_id="r-0", revision=1, body=b"x", encoding="zstd", size=1, sha256="x",
                fetched_at=START,
            )
        )  # fmt: skip
    done = archiver.call("replay")
    assert done.exit_code == 1
    assert done.stdout.endswith("1 rejects archived\n")


def test_a_reject_is_archived_by_the_settings_of_the_whole_rebuild(
    engine: Engine, archiver: Program, api: FakeApi
) -> None:
    """Killed in between, it leaves no archive whose days are of two time zones."""
    api.answers = {"r-1": [result(started_at="2024-03-01T12:00:00Z")]}
    assert archiver.call("ingest", "r-1").exit_code == 0
    a_reject(engine, "r-2", Reason.INTERNAL_ERROR, PASSED)
    far_east = {"RESULT_ARCHIVER__REPORTING__TIME_ZONE": "Pacific/Kiritimati"}
    config = load(None, far_east)
    begin_rebuild(engine, config.reporting)
    interrupted = replay_rejects(engine, config, NOW)
    assert next(interrupted).answer.run_id == "r-2"
    del interrupted
    assert archiver.call("report", "trend").exit_code == 4
    assert archiver.given(**far_east).call("replay").exit_code == 0
    with reading(engine) as connection:
        days = {str(row["day"]) for row in rows_of(connection, schema.daily_results)}
    assert days == {"2024-03-02"}
