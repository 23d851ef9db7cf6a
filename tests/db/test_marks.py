"""Dirty marks: a commit leaves them, a refresh takes them, and no result is missed or doubled."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, event, text

from etl.archive import removal
from etl.archive.rekey import rekey_application
from etl.archive.replay import lock_runs
from etl.archive.verify import verify_archive
from etl.config.settings import DEFAULT_RULES, Reporting
from etl.db.database import connect, prepare, reading, writing
from etl.db.schema import daily_results, durations, series, variant_rosters, weekly_results
from etl.derived import marks
from etl.derived.plans import Application, Plan
from etl.derived.refresh import refresh_marked, refresh_plans, refresh_some
from tests.support.dump import dump, rows_of
from tests.support.histories import (
    CHROME,
    SAFARI,
    a_run,
    count_all,
    forget_all,
    keep,
    list_recent,
    see,
)
from tests.support.program import program

NOW = datetime(2024, 7, 1, 9, 30, tzinfo=UTC)
PLAN = Plan("default", "shop", "nightly")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    prepare(engine)
    yield engine
    engine.dispose()


def differences(engine: Engine) -> list[object]:
    """Return the differences that verify finds."""
    found = list(verify_archive(engine, Reporting("Europe/Berlin")))
    return [each for batch in found for each in (*batch.damage, *batch.differing)]


def on(day: int) -> str:
    return f"2024-06-{day:02}T10:00:00Z"


def test_the_first_run_of_a_plan_is_derived_with_its_commit(engine: Engine) -> None:
    with writing(engine) as connection:
        keep(connection, NOW, {"run-1": a_run(on(1), {"home": "F", "cart": "U"})})
        assert not marks.has_dirty_marks(connection)
        assert list_recent(connection) == [("cart", "U"), ("home", "F")]
        assert rows_of(connection, series) == []
        for table in (durations, daily_results, weekly_results):
            assert len(rows_of(connection, table)) == 1, table.name
    assert differences(engine) == []


def test_a_test_that_its_first_run_has_twice_is_derived_by_a_refresh(engine: Engine) -> None:
    with writing(engine) as connection:
        keep(connection, NOW, {"run-1": a_run(on(1), {"home": "F", "cart": "PU"})})
        assert marks.has_dirty_marks(connection)
        count_all(connection)
        assert list_recent(connection) == [("cart", "PU"), ("home", "F")]
        assert len(rows_of(connection, series)) == 2
    assert differences(engine) == []


def test_series_have_rows_of_their_own_while_their_variant_has_two_runs(engine: Engine) -> None:
    """Reports and views depend on the present runs alone, not on earlier rows."""
    once = {"run-1": a_run(on(1), {"home": "P", "cart": "U"})}
    again = {"run-2": a_run(on(2), {"home": "F", "pay": "P"})}
    with writing(engine) as connection:
        keep(connection, NOW, once)
        before = rows_of(connection, variant_rosters)
        keep(connection, NOW, again)
        assert list_recent(connection) == [("cart", "U"), ("home", "P")], "until the refresh"
        count_all(connection)
        assert list_recent(connection) == [("cart", "U"), ("home", "PF"), ("pay", "P")]
        assert len(rows_of(connection, series)) == 3
    assert differences(engine) == []
    with writing(engine) as connection:
        removal.drop_runs(connection, ["run-2"], NOW, Reporting("Europe/Berlin"))
        count_all(connection)
        assert list_recent(connection) == [("cart", "U"), ("home", "P")]
        assert rows_of(connection, series) == []
        assert rows_of(connection, variant_rosters) == before
    assert differences(engine) == []


def test_a_change_of_the_only_run_is_seen_as_a_whole(engine: Engine) -> None:
    """Before the refresh the series are those of the content before, though its tests are gone."""
    with writing(engine) as connection:
        keep(connection, NOW, {"run-1": a_run(on(1), {"home": "P", "cart": "U"})})
        keep(connection, NOW, {"run-1": a_run(on(1), {"cart": "P", "pay": "F"})})
        assert list_recent(connection) == [("cart", "U"), ("home", "P")]
        count_all(connection)
        assert list_recent(connection) == [("cart", "P"), ("pay", "F")]
        assert rows_of(connection, series) == []
    assert differences(engine) == []


def test_a_run_without_a_start_does_not_take_part_in_the_series(engine: Engine) -> None:
    undated = {"run-1": a_run(None, {"pay": "P"})}
    only = {"run-2": a_run(on(1), {"home": "P", "cart": "U"})}
    for steps in ([undated, only], [only, undated]):
        forget_all(engine)
        for step in steps:
            with writing(engine) as connection:
                keep(connection, NOW, step)
                count_all(connection)
            assert differences(engine) == []
        with reading(engine) as connection:
            assert list_recent(connection) == [("cart", "U"), ("home", "P")]


def test_runs_of_one_new_plan_in_a_batch_are_marked(engine: Engine) -> None:
    runs = {f"run-{day}": a_run(on(day), {"home": "P"}) for day in (1, 2)}
    with writing(engine) as connection:
        keep(connection, NOW, runs)
        assert marks.count_marked(connection) == 2
        assert rows_of(connection, series) == []
    assert differences(engine) == []  # marked rows are not compared


def test_a_run_that_moves_to_another_plan_and_day_leaves_the_old_ones(engine: Engine) -> None:
    first = {"run-1": a_run(on(1), {"home": "P"}), "run-2": a_run(on(2), {"home": "F"})}
    moved = {"run-2": a_run(on(20), {"home": "F"}, name="weekly", environments=[SAFARI])}
    with writing(engine) as connection:
        keep(connection, NOW, first)
        count_all(connection)
        keep(connection, NOW, moved)
        count_all(connection)
        days = sorted((row["plan"], row["iso_date"]) for row in rows_of(connection, daily_results))
    assert days == [("nightly", "2024-06-01"), ("weekly", "2024-06-20")]
    assert differences(engine) == []


RUN: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "run_id": st.sampled_from(["run-1", "run-2", "run-3", "run-4"]),
        "plan": st.sampled_from(["nightly", "weekly"]),
        "day": st.integers(1, 20) | st.none(),
        "environment": st.sampled_from([CHROME, SAFARI]),
        "letters": st.dictionaries(
            st.sampled_from(["home", "cart"]), st.text("PFU", min_size=1, max_size=2)
        ),
    }
)
STEP: st.SearchStrategy[Any] = st.just("refresh") | st.lists(
    RUN, min_size=1, max_size=3, unique_by=lambda run: str(run["run_id"])
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(STEP, min_size=1, max_size=6))
def test_whenever_a_refresh_comes_the_rows_are_the_same(engine: Engine, steps: list[Any]) -> None:
    """After each refresh nothing is wrong, and the last one gives what one at the end gives."""
    dumps = []
    for is_often in (True, False):
        forget_all(engine)
        for step in steps:
            with writing(engine) as connection:
                if not isinstance(step, str):
                    keep(connection, NOW, {run["run_id"]: _answer(run) for run in step})
                elif is_often:
                    count_all(connection)
            assert differences(engine) == []
        with writing(engine) as connection:
            count_all(connection)
            dumps.append(dump(connection))
        assert differences(engine) == []
    assert dumps[0] == dumps[1]


def _answer(run: dict[str, Any]) -> dict[str, Any]:
    day = run["day"]
    return a_run(
        on(day) if isinstance(day, int) else None,
        run["letters"],
        name=run["plan"],
        environments=[run["environment"]],
    )


def test_two_commits_of_one_new_plan_at_a_time_derive_both(postgresql_url: str) -> None:
    """The second waits for the first, then finds that the plan is no longer new."""
    engine = connect(postgresql_url)
    prepare(engine)

    def store() -> None:
        with writing(engine) as connection:
            run = a_run(on(2), {"home": "F"}, environments=[SAFARI])
            keep(connection, NOW, {"run-2": run})

    storing = threading.Thread(target=store)
    with writing(engine) as connection:
        keep(connection, NOW, {"run-1": a_run(on(1), {"home": "P"})})
        storing.start()
        storing.join(timeout=1)
        assert storing.is_alive()
    storing.join()
    with writing(engine) as connection:
        assert marks.count_marked(connection) == 1
        count_all(connection)
        assert sorted(recent for _, recent in list_recent(connection)) == ["F", "P"]
    assert differences(engine) == []
    engine.dispose()


def test_a_mark_that_comes_during_a_refresh_stays(postgresql_url: str) -> None:
    """A commit needs no lock for its marks, and the refresh does not see them."""
    engine = connect(postgresql_url)
    prepare(engine)
    with writing(engine) as connection:
        keep(connection, NOW, {f"run-{day}": a_run(on(day), {"home": "P"}) for day in (1, 2)})
    with writing(engine) as refreshing:
        count_all(refreshing)
        with writing(engine) as connection:
            keep(connection, NOW, {"run-3": a_run(on(3), {"home": "F"})})
    with writing(engine) as connection:
        assert marks.count_marked(connection) == 1
        count_all(connection)
        assert [recent for _, recent in list_recent(connection)] == ["PPF"]
    assert differences(engine) == []
    engine.dispose()


def test_a_refresh_ends_though_commits_mark_its_variants_again_and_again(server: Engine) -> None:
    see(server, NOW, {f"run-{day}": a_run(on(day), {"home": "P"}) for day in (1, 2)})
    days = iter(range(4, 9))

    def commit(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith("DELETE FROM dirty_marks") and (day := next(days, None)):
            with writing(server) as connection:
                keep(connection, NOW, {f"run-{day}": a_run(on(day), {"home": "F"})})

    with writing(server) as connection:
        keep(connection, NOW, {"run-3": a_run(on(3), {"home": "P"})})
    event.listen(server, "after_cursor_execute", commit)
    refresh_marked(server)
    event.remove(server, "after_cursor_execute", commit)
    with reading(server) as connection:
        assert [recent for _, recent in list_recent(connection)] == ["PPPF"]
        assert marks.count_marked(connection) == 1
    refresh_marked(server)
    assert differences(server) == []


def mark(connection: Connection, plan: Plan) -> None:
    marks.mark_plan_dirty(connection, plan.plan_id)


def recompute(connection: Connection, plan: Plan) -> None:
    refresh_plans(connection, [plan], DEFAULT_RULES)


@pytest.mark.parametrize("change", [mark, recompute])
def test_a_plan_is_changed_while_its_runs_are_stored(
    postgresql_url: str, change: Callable[[Connection, Plan], None]
) -> None:
    """A commit takes no lock: the mark that it leaves meanwhile stays."""
    engine = connect(postgresql_url)
    prepare(engine)

    def store() -> None:
        for number in range(60):
            with writing(engine) as connection:
                keep(connection, NOW, {f"run-{number}": a_run(on(1), {"home": "P"})})

    with ThreadPoolExecutor() as executor:
        storing = executor.submit(store)
        while not storing.done():
            with writing(engine) as connection:
                change(connection, Plan("default", "shop", "nightly"))
        storing.result()
    with writing(engine) as connection:
        count_all(connection)
    assert differences(engine) == []
    engine.dispose()


def test_a_refresh_can_be_asked_for(engine: Engine, database_url: str, tmp_path: Path) -> None:
    with writing(engine) as connection:
        keep(connection, NOW, {f"run-{day}": a_run(on(day), {"home": "P"}) for day in (1, 2)})
    archiver = program(tmp_path, database_url, "http://127.0.0.1:9")
    said = "views lack 2 revisions of runs; a pass adds them"
    assert said in archiver.call("status").stdout
    assert archiver.call("status", "--json").json()["unrefreshed"] == 2
    out_of_date = "the views lack 2 revisions of runs"
    assert out_of_date in archiver.call("export", "--csv", "before").stderr
    done = archiver.call("refresh")
    assert (done.exit_code, done.stdout.strip()) == (
        0,
        "derived tables are up to date; they lacked 2 revisions of runs",
    )
    assert said not in archiver.call("status").stdout
    assert archiver.call("export", "--csv", "after").stderr == ""
    with reading(engine) as connection:
        assert [recent for _, recent in list_recent(connection)] == ["PP"]


# --- concurrent transactions -------------------------------------------------------------------


@pytest.fixture
def server(postgresql_url: str) -> Iterator[Engine]:
    engine = connect(postgresql_url)
    prepare(engine)
    yield engine
    engine.dispose()


def on_safari(engine: Engine) -> list[tuple[str | None, str]]:
    with reading(engine) as connection:
        query = (
            "SELECT test, recent FROM reporting.series_health"
            " WHERE environment_signature LIKE '%Safari%' ORDER BY test"
        )
        return [(row.test, row.recent) for row in connection.execute(text(query))]


def store_on_safari(engine: Engine, run_id: str, day: int, letters: Mapping[str, str]) -> None:
    with writing(engine) as connection:
        lock_runs(connection, [run_id])  # as a commit does before anything else
        keep(connection, NOW, {run_id: a_run(on(day), letters, environments=[SAFARI])})


def test_a_change_of_an_only_run_waits_for_the_refresh_that_is_about_to_say_so(
    server: Engine,
) -> None:
    """Else its new tests would have the keys of the old ones, and a second change would fail."""
    see(server, NOW, {"run-0": a_run(on(1), {"home": "P"})})
    store_on_safari(server, "run-1", 2, {"b": "P"})
    grown = dict.fromkeys("abcd", "F")
    with ThreadPoolExecutor(1) as others:
        with writing(server) as refreshing:
            count_all(refreshing)
            change = others.submit(store_on_safari, server, "run-1", 2, grown)
            sleep(0.5)
        change.result(timeout=10)
    assert on_safari(server) == [("b", "P")], "until the refresh"
    store_on_safari(server, "run-1", 2, dict.fromkeys("abcde", "P"))
    with writing(server) as connection:
        count_all(connection)
    assert on_safari(server) == [(name, "P") for name in "abcde"]
    assert differences(server) == []


def test_a_commit_and_a_refresh_of_its_only_run_do_not_deadlock(server: Engine) -> None:
    see(server, NOW, {"run-1": a_run(on(1), {"home": "U"})})
    with writing(server) as connection:
        keep(connection, NOW, {"run-2": a_run(on(2), {"home": "P"})})

    def refresh() -> None:
        with writing(server) as connection:
            marks.lock_plans(connection, [PLAN.plan_id])
            sleep(0.5)
            refresh_some(connection, DEFAULT_RULES)

    with ThreadPoolExecutor(1) as others:
        with writing(server) as connection:
            lock_runs(connection, ["run-1"])
            refreshing = others.submit(refresh)
            sleep(0.2)
            keep(connection, NOW, {"run-1": a_run(on(1), {"home": "P"})})
        refreshing.result(timeout=10)
    with writing(server) as connection:
        count_all(connection)
    assert differences(server) == []


def test_a_commit_and_a_rekey_of_its_plan_do_not_deadlock(server: Engine) -> None:
    see(server, NOW, {"run-1": a_run(on(1), {"home": "U"})})
    has_plan = threading.Event()

    def hold_plan(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith("DELETE FROM series"):
            has_plan.set()
            sleep(0.5)

    event.listen(server, "before_cursor_execute", hold_plan)
    with ThreadPoolExecutor(1) as others:
        rekeying = others.submit(rekey_application, server, Application("default", "shop"), UTC)
        assert has_plan.wait(10)
        with writing(server) as connection:
            lock_runs(connection, ["run-1"])
            keep(connection, NOW, {"run-1": a_run(on(1), {"home": "P"})})
        rekeying.result(timeout=10)
    with writing(server) as connection:
        count_all(connection)
    assert differences(server) == []
