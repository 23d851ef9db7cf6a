"""Whether ids repeat is measured, and decides by what a test is known from run to run."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, Table, delete, event, insert, select, update

from etl.archive import identity
from etl.archive.identity import Repeats, choose_key_kind, count_repeats
from etl.archive.newest_tests import MAX_RUNS, MAX_TESTS, WALKED_RUNS, ListedTest
from etl.archive.replay import replay_archive
from etl.archive.verify import verify_archive
from etl.config.settings import DEFAULT_RULES, Reporting
from etl.db.database import connect, prepare, reading, writing
from etl.db.schema import drift, identities, identity_decisions, rosters, runs
from etl.derived import refresh
from etl.derived.identity_rules import IdentityRules
from etl.derived.plans import Application
from etl.errors import DatabaseError
from etl.reports import series as report
from etl.reports.model import ReportRequest
from tests.support.dump import dump, rows_of
from tests.support.fake_api import FakeApi, result
from tests.support.histories import BERLIN, forget_all, keep, list_recent
from tests.support.program import Program

AT = datetime(2024, 5, 1, tzinfo=UTC)
SHOP = Application("default", "Shop")
RUN_IDS = [f"r-{number}" for number in range(1, 13)]


def listed(name: str, test_id: str | None, plan: str = "Nightly") -> ListedTest:
    return ListedTest(plan, name, None, test_id)


def test_ids_of_the_same_test_are_compared_from_run_to_run() -> None:
    newest_first = [
        [listed("a", "1"), listed("b", "2"), listed("c", "3")],
        [listed("a", "1"), listed("b", "9")],
        [listed("a", "1"), listed("c", "3"), listed("c", "3"), listed("b", None)],
    ]
    assert count_repeats(newest_first) == Repeats(compared=3, repeated=2)


def test_the_same_name_in_another_plan_is_another_test() -> None:
    assert count_repeats([[listed("a", "1")], [listed("a", "1", plan="Weekly")]]) == (0, 0)


@pytest.mark.parametrize(
    ("found", "before", "kind"),
    [
        (Repeats(19, 19), "name", "name"),
        (Repeats(20, 18), "name", "id"),
        (Repeats(20, 17), "name", "name"),
        (Repeats(20, 17), "id", "id"),
        (Repeats(20, 10), "id", "id"),
        (Repeats(20, 9), "id", "name"),
    ],
)
def test_what_was_decided_stays_until_there_is_reason_enough(
    found: Repeats, before: str, kind: str
) -> None:
    assert choose_key_kind(found, before) == kind


def runs_of(ids_by_run: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return an answer for each run; its tests are A and B, and B is renamed in the last one."""
    answers = {}
    for number, ids in enumerate(ids_by_run):
        names = ["A", "B" if number < len(ids_by_run) - 1 else "B, renamed"]
        tests = [
            {"id": test_id, "name": name, "status": "passed"}
            for test_id, name in zip(ids, names, strict=True)
        ]
        started_at = f"2024-03-{number + 1:02}T12:00:00Z"
        answers[RUN_IDS[number]] = [result(started_at=started_at, application="Shop", tests=tests)]
    return answers


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    yield engine
    engine.dispose()


def known_tests(engine: Engine) -> list[tuple[str | None, str]]:
    """Return each series by its test's name and its outcomes."""
    with reading(engine) as connection:
        return list_recent(connection)


def measured(engine: Engine) -> list[tuple[Any, ...]]:
    columns = ("application", "compared", "repeated", "key_kind", "is_applied")
    with reading(engine) as connection:
        return [
            tuple(row)
            for row in connection.execute(
                select(*[identities.c[c] for c in columns]).order_by(identities.c.application)
            )
        ]


def test_a_test_that_keeps_its_id_keeps_its_history_when_it_is_renamed(
    api: FakeApi, archiver: Program, engine: Engine
) -> None:
    api.answers = runs_of([("id of a", "id of b")] * 12)
    assert archiver.call("ingest", *RUN_IDS).exit_code == 0
    assert measured(engine) == [("Shop", 21, 21, "id", True)]
    assert known_tests(engine) == [("A", "P" * 10), ("B, renamed", "P" * 10)]
    assert archiver.call("verify").exit_code == 0


def test_an_application_is_measured_in_its_own_runs_where_all_newest_ones_are_of_another(
    api: FakeApi, archiver: Program, engine: Engine
) -> None:
    tests = [{"id": "1", "name": "A", "status": "passed"}]
    others = [f"other-{number}" for number in range(WALKED_RUNS + 1)]
    newer = result(started_at="2024-06-01T12:00:00Z", application="Other", tests=tests)
    api.answers = {each: [newer] for each in others} | runs_of([("id of a", "id of b")] * 12)
    assert archiver.call("ingest", *others).exit_code == 0
    assert archiver.call("ingest", *RUN_IDS).exit_code == 0
    compared = min(MAX_RUNS - 1, identity.ENOUGH_COMPARED)
    assert measured(engine) == [
        ("Other", compared, compared, "id", True),
        ("Shop", 21, 21, "id", True),
    ]


def test_an_application_with_more_plans_than_newest_runs_is_measured(
    api: FakeApi, archiver: Program, engine: Engine
) -> None:
    tests = [{"id": "1", "name": "A", "status": "passed"}]
    api.answers = {
        f"{night}-{plan}": [
            result(started_at=f"2024-05-0{night}T12:00:00Z", name=plan, tests=tests)
        ]
        for night in (1, 2)
        for plan in map(str, range(MAX_RUNS + 5))
    }
    assert archiver.call("ingest", *api.answers).exit_code == 0
    assert [row[1:4] for row in measured(engine)] == [(MAX_RUNS + 5, MAX_RUNS + 5, "id")]


def test_large_runs_of_other_plans_do_not_hide_a_pair(
    api: FakeApi, archiver: Program, engine: Engine
) -> None:
    tests = [{"id": f"{place}", "name": f"test {place}"} for place in range(MAX_TESTS // 10)]
    plans = {f"alone-{number}": f"plan {number}" for number in range(11)}
    api.answers = {
        run_id: [result(started_at="2024-06-01T12:00:00Z", name=plan, tests=tests)]
        for run_id, plan in plans.items()
    }
    pair = {"started_at": "2024-05-01T12:00:00Z", "name": "Nightly", "tests": tests[:20]}
    api.answers |= {"pair-1": [result(**pair)], "pair-2": [result(**pair)]}
    assert archiver.call("ingest", *api.answers).exit_code == 0
    assert [row[1:4] for row in measured(engine)] == [(20, 20, "id")]


def test_the_lists_that_were_kept_by_name_are_gone_once_ids_are_known_to_repeat(
    api: FakeApi, archiver: Program, engine: Engine
) -> None:
    api.answers = runs_of([("id of a", "id of b")] * 12)
    archiver.call("ingest", *RUN_IDS)
    with reading(engine) as connection:
        assert sorted(connection.scalars(select(rosters.c.tests))) == [
            '[["A",null,"id of a"],["B",null,"id of b"]]',
            '[["A",null,"id of a"],["B, renamed",null,"id of b"]]',
        ]


def test_a_list_that_somebody_is_about_to_refer_to_stays(postgresql_url: str) -> None:
    engine = connect(postgresql_url)
    prepare(engine)
    with writing(engine) as connection:
        connection.execute(insert(rosters).values(roster_id="0" * 32, tests="[]"))
    with writing(engine) as storing, writing(engine) as connection:
        # As the check of a foreign key does.
        storing.execute(select(rosters).with_for_update(read=True, key_share=True))
        refresh.delete_unused_rosters(connection)
        assert len(connection.execute(select(rosters)).all()) == 1
    with writing(engine) as connection:
        refresh.delete_unused_rosters(connection)
        assert connection.execute(select(rosters)).all() == []
    engine.dispose()


def test_a_test_whose_id_is_made_up_anew_is_known_by_its_name(
    api: FakeApi, archiver: Program, engine: Engine
) -> None:
    api.answers = runs_of([(f"{number}-a", f"{number}-b") for number in range(12)])
    assert archiver.call("ingest", *RUN_IDS).exit_code == 0
    assert measured(engine) == [("Shop", 21, 0, "name", True)]
    assert known_tests(engine) == [("A", "P" * 10), ("B", "P" * 10), ("B, renamed", "P")]


def test_counting_anew_that_was_interrupted_is_made_up_for(
    api: FakeApi, archiver: Program, engine: Engine
) -> None:
    api.answers = runs_of([("id of a", "id of b")] * 12)
    store_all(engine, api)
    with refused_update(engine, RUN_IDS[6]), pytest.raises(DatabaseError, match="interrupted"):
        identity.measure_again(engine, {SHOP}, AT, UTC)
    assert measured(engine) == [("Shop", 21, 21, "id", False)]
    archiver.call("ingest", RUN_IDS[-1], "--refresh")  # which changes nothing
    assert measured(engine) == [("Shop", 21, 21, "id", True)]
    with reading(engine) as connection:
        before = dump(connection)
    assert archiver.call("replay").stdout.startswith("12 runs read: 0 rows in 0 runs changed")
    with reading(engine) as connection:
        assert dump(connection) == before


def test_what_a_killed_pass_did_not_measure_is_measured_by_the_next(
    api: FakeApi, archiver: Program, engine: Engine
) -> None:
    api.answers = runs_of([("id of a", "id of b")] * 12)
    store_all(engine, api)
    assert measured(engine) == []
    archiver.call("ingest")
    assert measured(engine) == [("Shop", 21, 21, "id", True)]


def store_all(engine: Engine, api: FakeApi) -> None:
    """Store all answers as a pass that was killed before it measured anything."""
    prepare(engine)
    seen = {run_id: json.loads(first.body)["result"] for run_id, [first] in api.answers.items()}
    with writing(engine) as connection:
        keep(connection, AT, seen, UTC)


# --- ids that stop repeating, or begin to ----------------------------------------------------


def answer_number(number: int, ids: Sequence[str]) -> dict[str, Any]:
    """Return an answer for a run that started so many hours after `AT`; tests are A, B, ..."""
    names = zip("ABCDE", ids, strict=False)
    return {
        "name": "Nightly",
        "application": "Shop",
        "status": "passed",
        "started_at": (AT + timedelta(hours=number)).isoformat(),
        "tests": [{"id": test_id, "name": name, "status": "passed"} for name, test_id in names],
    }


def restate_decision(ids_by_run: Sequence[Sequence[str]], before: str) -> str:
    """Decide by the newest pairs of neighbouring runs, 50 or a few more."""
    pairs: list[bool] = []
    for number in range(len(ids_by_run) - 1, 0, -1):
        if len(pairs) < 50:
            newer, older = ids_by_run[number], ids_by_run[number - 1]
            pairs += [one == other for one, other in zip(newer, older, strict=False)]
    if len(pairs) < 20 or 0.5 <= sum(pairs) / len(pairs) < 0.9:
        return before
    return "id" if sum(pairs) / len(pairs) >= 0.9 else "name"


def list_series(engine: Engine, as_of: datetime | None) -> list[Any]:
    """Return the report `series` without the figure that is missing as of a moment."""
    request = ReportRequest(as_of or AT, DEFAULT_RULES, ZoneInfo("UTC"), as_of=as_of)
    place = report.PLACES["is_confirmed_flaky"]
    with reading(engine) as connection:
        rows = [list(row) for row in report.rows(connection, request)]
    return sorted([row[:place] + row[place + 1 :] for row in rows], key=repr)


phases = st.lists(
    st.tuples(st.sampled_from(["repeat", "repeat", "change", "change", "some"]), st.integers(1, 9)),
    min_size=1,
    max_size=6,
)


def test_a_report_as_of_a_moment_uses_the_decision_of_that_moment(engine: Engine) -> None:
    @settings(
        max_examples=10 if engine.dialect.name == "sqlite" else 5,
        phases=[Phase.explicit, Phase.generate],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @example([("repeat", 6), ("change", 9), ("change", 9), ("repeat", 9), ("repeat", 9)])
    @given(phases)
    def check(history: Sequence[tuple[str, int]]) -> None:
        forget_all(engine)
        ids_by_run: list[list[str]] = []
        seen: dict[datetime, list[Any]] = {}
        kind, kinds = "name", []
        for step, (behaviour, added) in enumerate(history):
            at = AT + timedelta(days=30 + step)
            for _ in range(added):
                number = len(ids_by_run)
                fresh = {"repeat": 0, "some": 2, "change": 5}[behaviour]
                ids = [f"{place}" for place in range(5)]
                ids[:fresh] = [f"{number}-{place}" for place in range(fresh)]
                with writing(engine) as connection:
                    keep(connection, at, {f"run-{number:03}": answer_number(number, ids)}, UTC)
                ids_by_run.append(ids)
            identity.refresh_archive(engine, at + timedelta(hours=1), UTC)
            if len(ids_by_run) > 1:
                kind = restate_decision(ids_by_run, kind)
            kinds.append(kind)
            moment = at + timedelta(hours=2)
            seen[moment] = list_series(engine, None)
            for earlier, rows in seen.items():
                assert list_series(engine, earlier) == rows
        with reading(engine) as connection:
            for moment, wanted in zip(seen, kinds, strict=True):
                by_id = IdentityRules(connection, moment).id_keyed
                assert by_id == ({SHOP} if wanted == "id" else set())
        found = list(verify_archive(engine, Reporting("UTC")))
        assert [each for batch in found for each in (*batch.damage, *batch.differing)] == []

    prepare(engine)
    check()


def test_a_switch_is_said_and_the_histories_are_joined_again(
    api: FakeApi, archiver: Program, engine: Engine
) -> None:
    api.answers = runs_of([("id of a", "id of b")] * 12)
    archiver.call("ingest", *RUN_IDS)
    assert known_tests(engine) == [("A", "P" * 10), ("B, renamed", "P" * 10)]
    later = [f"later-{number:02}" for number in range(30)]
    for number, run_id in enumerate(later):
        tests = [{"id": f"{number}{name}", "name": name, "status": "failed"} for name in "AB"]
        started_at = f"2024-04-{number + 1:02}T12:00:00Z"
        api.answers[run_id] = [result(started_at=started_at, application="Shop", tests=tests)]
    few = archiver.call("ingest", *later[:5])
    assert "test ids" not in few.stderr
    assert len(known_tests(engine)) == 12  # each new id is a test of its own, until it is noticed
    done = archiver.call("ingest", *later)
    assert (
        "application Shop of default: test ids do not repeat any more from run to run; its tests"
        " are identified by name and type from now on" in done.stderr
    )
    assert known_tests(engine) == [("A", "F" * 10), ("B", "F" * 10), ("B, renamed", "P")]
    with reading(engine) as connection:
        switches = select(drift.c.path, drift.c.json_type, drift.c.first_run_id)
        rows = connection.execute(switches.where(drift.c.path.like("% of %"))).all()
    assert [tuple(row) for row in rows] == [
        ("result.tests[].id of 'Shop' in 'default'", "changes", "later-29")
    ]
    assert archiver.call("verify").exit_code == 0


CHANGES: list[tuple[Table, dict[str, Any]]] = [
    (identities, {"compared": 22}),
    (identities, {"repeated": 20}),
    (identities, {"repeat_share": 0.99}),
    (identities, {"key_kind": "name"}),
    (identities, {"decided_at": AT}),
    (identities, {"measured_at": AT}),
    (identities, {"is_applied": False}),
    (identities, {"digest": "0"}),
    (identities, {"application": "Shops"}),
    (identity_decisions, {"decided_at": AT}),
    (identity_decisions, {"application": "Shops"}),
]


def test_verify_finds_each_change_of_a_decision(
    api: FakeApi, archiver: Program, engine: Engine
) -> None:
    api.answers = runs_of([("id of a", "id of b")] * 12)
    archiver.call("ingest", *RUN_IDS)
    with reading(engine) as connection:
        whole = dump(connection, ["identities", "identity_decisions"])
    for table, change in CHANGES:
        with writing(engine) as connection:
            before = {each: rows_of(connection, each) for each in (identities, identity_decisions)}
            connection.execute(update(table).values(change))
        found = list(verify_archive(engine, Reporting("UTC")))
        assert "identities" in {each.table for batch in found for each in batch.differing}, change
        assert archiver.call("replay").exit_code == 0
        assert archiver.call("verify").exit_code == 0, change
        with reading(engine) as connection:
            assert dump(connection, ["identities", "identity_decisions"]) == whole
        with writing(engine) as connection:
            for each, rows in before.items():
                connection.execute(delete(each))
                connection.execute(insert(each), rows)
    assert archiver.call("verify").exit_code == 0


@contextmanager
def refused_update(engine: Engine, run_id: str) -> Iterator[None]:
    """Let the database refuse to change the outcomes of a run."""
    when = f"BEFORE UPDATE ON outcomes FOR EACH ROW WHEN (old.run_id = '{run_id}')"
    if engine.dialect.name == "sqlite":
        execute(
            engine,
            f"CREATE TRIGGER refused {when} BEGIN SELECT RAISE(ABORT, 'interrupted'); END",
        )
        yield
        execute(engine, "DROP TRIGGER refused")
    else:
        execute(
            engine,
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN RAISE 'interrupted'; END $$",
            f"CREATE TRIGGER refused {when} EXECUTE FUNCTION refuse()",
        )
        yield
        execute(engine, "DROP TRIGGER refused ON outcomes", "DROP FUNCTION refuse")


def execute(engine: Engine, *statements: str) -> None:
    with writing(engine) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_what_is_decided_while_runs_are_stored_holds_for_them_too(postgresql_url: str) -> None:
    """Those who store have seen what was decided before; the decision waits for them."""
    engine = connect(postgresql_url)
    prepare(engine)
    tests = [{"id": f"id of {name}", "name": name, "status": "passed"} for name in "ab"]
    run = {"application": "Shop", "name": "Nightly", "status": "passed", "tests": tests}
    seen = {
        run_id: run | {"started_at": f"2024-05-{number:02}T09:00:00.000Z"}
        for number, run_id in enumerate(RUN_IDS, start=1)
    }
    with writing(engine) as connection:
        keep(connection, AT, {run_id: seen[run_id] for run_id in RUN_IDS[1:]})
    with ThreadPoolExecutor() as executor:
        with writing(engine) as storing:
            keep(storing, AT, {RUN_IDS[0]: seen[RUN_IDS[0]]})
            deciding = executor.submit(identity.measure_new, engine, {SHOP}, AT, BERLIN)
            with pytest.raises(TimeoutError):
                deciding.result(timeout=1)
        deciding.result(timeout=20)
    assert measured(engine) == [("Shop", 22, 22, "id", True)]
    with reading(engine) as connection:
        [by_id] = connection.scalars(select(rosters.c.tests))
    assert by_id == '[["a",null,"id of a"],["b",null,"id of b"]]'
    engine.dispose()


def test_a_decision_waits_for_a_replay_that_has_read_the_rule(postgresql_url: str) -> None:
    """The replay's lost run has no outcomes yet: a decision would not find it among its plan's."""
    engine, other = connect(postgresql_url), connect(postgresql_url)
    prepare(engine)
    tests = [{"id": f"id of {name}", "name": name, "status": "passed"} for name in "ab"]
    run = {"application": "Shop", "name": "Nightly", "status": "passed", "tests": tests}
    with writing(engine) as connection:
        for number, run_id in enumerate(RUN_IDS, start=1):
            started_at = f"2024-05-{number:02}T09:00:00.000Z"
            keep(connection, AT, {run_id: run | {"started_at": started_at}}, UTC)
        connection.execute(delete(runs).where(runs.c.run_id == RUN_IDS[0]))  # and its outcomes
    with ThreadPoolExecutor() as executor:
        decisions: list[Future[None]] = []

        def decide(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
            if "FROM identities" in statement and not decisions:
                decisions.append(executor.submit(identity.measure_new, other, {SHOP}, AT, UTC))
                wait(decisions, timeout=1)

        event.listen(engine, "after_cursor_execute", decide)
        for _ in replay_archive(engine, Reporting()):
            pass
        event.remove(engine, "after_cursor_execute", decide)
        decisions[0].result(timeout=20)
    refresh.refresh_marked(engine)
    assert measured(engine) == [("Shop", 22, 22, "id", True)]
    found = list(verify_archive(engine, Reporting()))
    assert [each for batch in found for each in (*batch.damage, *batch.differing)] == []
    engine.dispose()
    other.dispose()
