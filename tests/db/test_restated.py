"""What is counted is what METRICS says, restated in Python, whatever happened in which order."""

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from etl.archive.verify import verify_archive
from etl.config.settings import Reporting, Rules
from etl.db import bulk
from etl.db.database import connect, prepare, reading
from etl.db.schema import (
    daily_results,
    durations,
    outcomes,
    plan_summaries,
    series,
    status_changes,
    weekly_results,
)
from etl.derived import aggregates
from tests.support import restated
from tests.support.dump import Row
from tests.support.histories import (
    BERLIN,
    CHROME,
    SAFARI,
    WORDS,
    a_run,
    derive_with,
    forget_all,
    label,
    named_rows,
    rounded,
    see,
)
from tests.support.restated import Stretch

HISTORIES = int(os.environ.get("HISTORIES", "0"))
"""How many histories to try on each database, instead of a few."""

FIRST_LOOK = datetime(2024, 7, 1, tzinfo=UTC)
NEWEST = datetime(2024, 4, 20, 12, tzinfo=UTC)
DAYS_BEFORE = (0, 0, 0.001, 1, 2, 6.5, 7, 8, 20.5, 20.54, 20.6, 29, 30, 34, 35, 36)
"""Ties, the bounds of the windows, and the hours around the change to summer time."""
STARTS = [(NEWEST - timedelta(days=days)).isoformat() for days in DAYS_BEFORE]
WHO = ("home", "cart", "home", "pay", "cart")
"""The names of a run's tests: some stand there twice."""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    prepare(engine)
    yield engine
    engine.dispose()


words = st.sampled_from(
    [*WORDS.values(), "passed", "failed", "failed", "passed", "asleep", "", None]
)
rules_of_all_kinds = st.builds(
    Rules,
    window_results=st.integers(2, 8),
    window_days=st.sampled_from([1, 7, 30, 40]),
    flaky_min_results=st.integers(2, 5),
    flaky_min_flips=st.integers(1, 3),
    flaky_min_flip_rate=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    statuses = draw(st.lists(words, max_size=len(WHO)))
    shift = draw(st.sampled_from([0, 0, 0, 1]))
    return {
        "application": draw(st.sampled_from(["shop", "shop", " shop ", None])),
        "name": draw(st.sampled_from(["nightly", "nightly", "nightly ", "smoke"])),
        "environments": draw(
            st.sampled_from([[CHROME], [CHROME], [SAFARI, CHROME], [CHROME, SAFARI], []])
        ),
        "status": draw(st.sampled_from(["passed", "failed", "unresolved", "aborted", "pending"])),
        "started_at": draw(st.sampled_from([*STARTS, None, "yesterday"])),
        "duration": draw(
            st.sampled_from([0, 1, 999, 60_000, 60_001, None]) | st.integers(0, 10**6)
        ),
        "results": {
            name: draw(st.integers(0, 3))
            for name in draw(st.sets(st.sampled_from([*WORDS.values()])))
        },
        "tests": [
            {"name": name, "type": kind, "status": status}
            for name, kind, status in zip(
                WHO[shift:], ("e2e", None, "e2e", "api", None), statuses, strict=False
            )
        ],
    }


run_ids = st.sampled_from([f"{letter}{number}" for letter in "Rr" for number in range(8)])
looks = st.dictionaries(run_ids, answers(), min_size=1, max_size=8)
commits = st.dictionaries(run_ids, st.sampled_from(["c1", "c2"]), min_size=1, max_size=6)
histories = st.lists(st.tuples(looks, commits | st.none()), min_size=1, max_size=6)


def account_of(run_id: str) -> str:
    """Return the account that a run is of: half of them are another one's, with equal names."""
    return "staging" if run_id[-1] in "02468" else "default"


def see_by_account(engine: Engine, at: datetime, seen: Mapping[str, Any], rules: Rules) -> None:
    for account in ("default", "staging"):
        its = {run_id: seen[run_id] for run_id in seen if account_of(run_id) == account}
        see(engine, at, its, rules=rules, source=account)


class Model:
    """What the archive was told, in plain lists."""

    def __init__(self) -> None:
        self.stretches: dict[str, list[Stretch]] = {}
        self.commits: dict[str, str] = {}

    def see(self, at: datetime, seen: Mapping[str, Any]) -> None:
        for run_id, answer in seen.items():
            known = self.stretches.setdefault(run_id, [])
            if known and known[-1].answer == answer:
                known[-1].last_seen_at = at
            else:
                known.append(Stretch(answer, at, at))

    def tables(self, rules: Rules) -> dict[str, list[Row]]:
        runs = [
            restated.read(
                run_id,
                account_of(run_id),
                stretches[-1].answer,
                BERLIN,
                self.commits.get(run_id),
            )
            for run_id, stretches in self.stretches.items()
        ]
        return {
            "series": restated.series(runs, rules),
            "durations": restated.durations(runs, rules),
            "plan_summaries": restated.plans(runs, rules),
            "daily_results": restated.daily(runs),
            "weekly_results": restated.weekly(runs),
            "status_changes": [
                row
                for run_id, stretches in self.stretches.items()
                for row in restated.status_changes(run_id, stretches)
            ],
        }


TABLES = (series, durations, plan_summaries, daily_results, weekly_results, status_changes)


def comparable(rows: Sequence[Row]) -> list[list[tuple[str, Any]]]:
    """Return rows in one order, their columns too, and without the last digit of numbers."""
    return sorted((sorted(rounded(row).items()) for row in rows), key=repr)


def test_whatever_happens_the_tables_say_what_metrics_says(engine: Engine) -> None:
    few = 25 if engine.dialect.name == "sqlite" else 12

    @settings(
        max_examples=HISTORIES or few,
        phases=[Phase.explicit, Phase.generate],
        deadline=None,
        database=None,
        derandomize=not HISTORIES,
        suppress_health_check=list(HealthCheck),
    )
    @given(histories, rules_of_all_kinds)
    def check(history: Sequence[Any], rules: Rules) -> None:
        forget_all(engine)
        derive_with(engine, Reporting("Europe/Berlin", *rules))
        model = Model()
        for number, (seen, labelled) in zip(count(), history, strict=False):
            at = FIRST_LOOK + timedelta(hours=7 * number, milliseconds=number)
            if labelled:
                label(engine, labelled)
                model.commits |= labelled
            see_by_account(engine, at, seen, rules)
            model.see(at, seen)
        wanted = model.tables(rules)
        for table in TABLES:
            found, should_be = comparable(named_rows(engine, table)), comparable(wanted[table.name])
            only_found = [row for row in found if row not in should_be]
            missing = [row for row in should_be if row not in found]
            assert (table.name, only_found) == (table.name, missing)
            assert len(found) == len(should_be)
        assert_kept_as_computed_anew(engine, rules)

    check()


TEST_IDS = ("1", "2", "3", "4", "4", "", None)
"""Ids of tests: some are equal, some are missing."""

listed_tests = st.fixed_dictionaries(
    {
        "id": st.sampled_from(TEST_IDS),
        "name": st.sampled_from(["home", "cart", "pay", None]),
        "type": st.sampled_from(["e2e", "e2e", None]),
        "status": st.sampled_from(["passed", "failed", "unresolved", "unresolved", None]),
    }
)
moves = st.tuples(
    st.sampled_from(["move", "drop", "repeat", "rename", "add", "decide", "decide", "new ids"]),
    st.integers(0, 9),
    listed_tests,
)
edits = st.lists(st.lists(moves, min_size=1, max_size=4), min_size=1, max_size=5)


runs_without_end = st.fixed_dictionaries(
    {
        "status": st.sampled_from(["unresolved", "unresolved", "passed", "running"]),
        "duration": st.sampled_from([None, None, 60_000]),
    }
)


def edited(tests: Sequence[Row], steps: Sequence[tuple[str, int, Row]]) -> list[Row]:
    """Return the tests of the next answer."""
    after = [dict(test) for test in tests]
    for what, number, other in steps:
        place = number % len(after) if after else 0
        if what == "add" or not after:
            after.insert(place, dict(other))
        elif what == "move":
            after.append(after.pop(place))
        elif what == "drop":
            after.pop(place)
        elif what == "repeat":
            after.insert(0, dict(after[place]))
        elif what == "rename":
            after[place]["name"] = other["name"]
        elif what == "decide":
            after[place]["status"] = other["status"]
        else:
            after = [{**test, "id": f"{number}-{place}"} for place, test in enumerate(after)]
    return after


def test_a_test_is_followed_when_it_moves_or_is_renamed(engine: Engine) -> None:
    few = 60 if engine.dialect.name == "sqlite" else 30

    @settings(
        max_examples=HISTORIES or few,
        phases=[Phase.explicit, Phase.generate],
        deadline=None,
        database=None,
        derandomize=not HISTORIES,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(listed_tests, max_size=6), edits, st.lists(runs_without_end, min_size=6))
    def check(tests: list[Row], later: Sequence[Any], fields: Sequence[Row]) -> None:
        forget_all(engine)
        derive_with(engine, Reporting("Europe/Berlin"))
        model = Model()
        for number, steps in enumerate([[], *later]):
            tests = edited(tests, steps)
            at = FIRST_LOOK + timedelta(hours=7 * number)
            seen = {"run": a_run(NEWEST.isoformat(), {}, tests=tests, **fields[number])}
            see(engine, at, seen)
            model.see(at, seen)
        stretches = model.stretches["run"]
        found = comparable(named_rows(engine, status_changes))
        assert found == comparable(restated.status_changes("run", stretches))
        opened_at = {row["revision"]: row["opened_at"] for row in named_rows(engine, outcomes)}
        assert opened_at == {
            number: restated.opened_at(stretches[:number])
            for number in range(1, len(stretches) + 1)
        }
        assert_kept_as_computed_anew(engine, Rules())

    check()


old_results = st.sampled_from([*["F"] * 40, "FF", "U", "", "P"])
new_results = st.sampled_from(["F", "F", "F", "FF", "U", "", "P", "P"])
long_histories = st.tuples(
    st.lists(old_results, min_size=60, max_size=60).map(lambda results: dict(enumerate(results))),
    st.lists(st.dictionaries(st.integers(54, 69), new_results, min_size=1, max_size=4), max_size=5),
)


def test_what_came_before_is_joined_to_what_comes(engine: Engine) -> None:
    """Long streaks and sparse series: what is kept of old runs is used, and they are not read."""

    @settings(
        max_examples=HISTORIES or 12,
        deadline=None,
        database=None,
        derandomize=not HISTORIES,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(long_histories, st.integers(2, 5))
    def check(history: Any, window_results: int) -> None:
        forget_all(engine)
        model, rules = Model(), Rules(window_results=window_results)
        first, later = history
        for number, letters in enumerate([first, *later]):
            at = FIRST_LOOK + timedelta(hours=number)
            seen = {
                f"run-{day:02}": a_run(
                    (NEWEST + timedelta(days=day // 2)).isoformat(),
                    {"home": strip, "cart": strip[:1] if day % 9 == 0 else ""},
                )
                for day, strip in letters.items()
            }
            see_by_account(engine, at, seen, rules)
            model.see(at, seen)
            found = comparable(named_rows(engine, series))
            assert found == comparable(model.tables(rules)["series"])

    check()


def assert_kept_as_computed_anew(engine: Engine, rules: Rules) -> None:
    with reading(engine) as connection:
        for plan_id in aggregates.list_plan_ids(connection):
            expected = aggregates.compute_plan_rows(connection, plan_id, rules)
            for table in aggregates.AGGREGATES:
                stored = aggregates.read_plan_rows(connection, plan_id, table)
                storable = bulk.to_driver_values(connection, table.columns, expected[table.name])
                assert sorted(storable) == sorted(stored), table.name
    found = list(verify_archive(engine, Reporting("Europe/Berlin", *rules)))
    assert [each for batch in found for each in (*batch.damage, *batch.differing)] == []
