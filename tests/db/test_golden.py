"""A small archive whose every number was worked out by hand, equal on both databases.

Histories are written the oldest result first: P passed, F failed, A aborted, U unresolved,
N pending, ? an unknown word, and a dot where the test was not in the run.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine

from etl.archive.verify import verify_archive
from etl.config.settings import Reporting, Rules
from etl.db.database import connect, prepare, writing
from etl.db.schema import (
    daily_results,
    durations,
    outcomes,
    plan_variants,
    series,
    status_changes,
    weekly_results,
)
from etl.derived import marks
from etl.derived.plans import Plan
from tests.support.dump import Row
from tests.support.histories import (
    CHROME,
    ON_BOTH,
    ON_CHROME,
    SAFARI,
    a_run,
    count_all,
    derive_with,
    keep,
    label,
    named_rows,
    rounded,
    see,
)

NOW = datetime(2024, 7, 1, 9, 30, tzinfo=UTC)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A new archive. What a test leaves in it is what would be computed anew."""
    engine = connect(database_url)
    prepare(engine)
    yield engine
    found = list(verify_archive(engine, Reporting("Europe/Berlin")))
    engine.dispose()
    assert [each for batch in found for each in (*batch.damage, *batch.differing)] == []


def the(rows: Sequence[Row], *names: str) -> list[tuple[Any, ...]]:
    """Return columns of rows, sorted."""
    return sorted((tuple(row[name] for name in names) for row in rows), key=repr)


def noon(day: int) -> str:
    """Return noon of a day of March 2024, as the API spells it."""
    return f"2024-03-{day:02}T12:00:00.000Z"


def moment(day: int) -> datetime:
    return datetime(2024, 3, day, 12, tzinfo=UTC)


# --- series ---------------------------------------------------------------------------------


class Case(NamedTuple):
    """A history of twelve days or less, the last one on 12 March, and what it comes to."""

    history: str
    window: str
    p_f_a_u_n: tuple[int, int, int, int, int]
    pass_rate: float | None
    strict_and_low: float | None
    high: float | None
    decided_share: float | None
    flips: int | None
    flip_rate: float | None
    health: float | None
    streak: int
    streak_since: int | None
    """A day of March."""
    last_status: str | None
    classes: str


CASES = {
    # The worked examples of METRICS.
    "flaky": Case(
        "PFPFPFPFPF", "PFPFPFPFPF", (5, 5, 0, 0, 0), 0.5, 0.5, 0.5, 1,
        9, 1, 0, 1, 12, "failed", "flaky regression",
    ),
    "new failure": Case(
        "PPPPPPPPPF", "PPPPPPPPPF", (9, 1, 0, 0, 0), 0.9, 0.9, 0.9, 1,
        1, 1 / 9, 0.8, 1, 12, "failed", "regression new_failure",
    ),
    "always failing": Case(
        "FFFFFFFFFF", "FFFFFFFFFF", (0, 10, 0, 0, 0), 0, 0, 0, 1,
        0, 0, 0, 10, 3, "failed", "always_failing",
    ),
    "nothing decided": Case(
        "UUAN", "UUAN", (0, 0, 1, 2, 1), None, 0, 2 / 3, 0,
        None, None, None, 0, None, "pending", "",
    ),
    # Flaky, or nearly so.
    "flaky by the fewest results": Case(
        "PPFPP", "PPFPP", (4, 1, 0, 0, 0), 0.8, 0.8, 0.8, 1,
        2, 0.5, 0.4, 0, None, "passed", "flaky",
    ),
    "not flaky: a result too few": Case(
        "PFPP", "PFPP", (3, 1, 0, 0, 0), 0.75, 0.75, 0.75, 1,
        2, 2 / 3, 0.25, 0, None, "passed", "",
    ),
    "not flaky: one flip": Case(
        "PPFFFF", "PPFFFF", (2, 4, 0, 0, 0), 1 / 3, 1 / 3, 1 / 3, 1,
        1, 0.2, 4 / 15, 4, 9, "failed", "",
    ),
    "flaky by the lowest flip rate of ten": Case(
        "PPPFFFPPPF", "PPPFFFPPPF", (6, 4, 0, 0, 0), 0.6, 0.6, 0.6, 1,
        3, 1 / 3, 0.4, 1, 12, "failed", "flaky regression",
    ),
    "not flaky: two flips in ten": Case(
        "PPPPFPPPPP", "PPPPFPPPPP", (9, 1, 0, 0, 0), 0.9, 0.9, 0.9, 1,
        2, 2 / 9, 0.7, 0, None, "passed", "",
    ),
    "not flaky any more": Case(
        "FPPPPPPPPPPP", "PPPPPPPPPP", (10, 0, 0, 0, 0), 1, 1, 1, 1,
        0, 0, 1, 0, None, "passed", "",
    ),
    # Regressions and new failures.
    "new failure by the fewest results": Case(
        "PPPPF", "PPPPF", (4, 1, 0, 0, 0), 0.8, 0.8, 0.8, 1,
        1, 0.25, 0.6, 1, 12, "failed", "regression new_failure",
    ),
    "regression, too few for a new failure": Case(
        "PPPF", "PPPF", (3, 1, 0, 0, 0), 0.75, 0.75, 0.75, 1,
        1, 1 / 3, 0.5, 1, 12, "failed", "regression",
    ),
    "regression, not the first failure": Case(
        "FPPPPPPPPF", "FPPPPPPPPF", (8, 2, 0, 0, 0), 0.8, 0.8, 0.8, 1,
        2, 2 / 9, 0.8 * 7 / 9, 1, 12, "failed", "regression",
    ),
    "new failure, the first one out of the window": Case(
        "FPPPPPPPPPF", "PPPPPPPPPF", (9, 1, 0, 0, 0), 0.9, 0.9, 0.9, 1,
        1, 1 / 9, 0.8, 1, 12, "failed", "regression new_failure",
    ),
    "no regression: failed before as well": Case(
        "PPPFF", "PPPFF", (3, 2, 0, 0, 0), 0.6, 0.6, 0.6, 1,
        1, 0.25, 0.45, 2, 11, "failed", "",
    ),
    "no regression: the first result there is": Case(
        "F", "F", (0, 1, 0, 0, 0), 0, 0, 0, 1,
        0, None, None, 1, 12, "failed", "",
    ),
    # Failing always, or nearly so.
    "always failing by the fewest results": Case(
        "FFFFF", "FFFFF", (0, 5, 0, 0, 0), 0, 0, 0, 1,
        0, 0, 0, 5, 8, "failed", "always_failing",
    ),
    "not always failing: too few": Case(
        "FFFF", "FFFF", (0, 4, 0, 0, 0), 0, 0, 0, 1,
        0, 0, 0, 4, 9, "failed", "",
    ),
    "not always failing: one pass": Case(
        "PFFFFFFFFF", "PFFFFFFFFF", (1, 9, 0, 0, 0), 0.1, 0.1, 0.1, 1,
        1, 1 / 9, 0.1 * 8 / 9, 9, 4, "failed", "",
    ),
    "always failing, the pass out of the window": Case(
        "PFFFFFFFFFFF", "FFFFFFFFFF", (0, 10, 0, 0, 0), 0, 0, 0, 1,
        0, 0, 0, 11, 2, "failed", "always_failing",
    ),
    # Recovered, or not.
    "recovered": Case(
        "FFP", "FFP", (1, 2, 0, 0, 0), 1 / 3, 1 / 3, 1 / 3, 1,
        1, 0.5, 1 / 6, 0, None, "passed", "recovered",
    ),
    "recovered, whatever was not decided": Case(
        "FANUPU", "FANUPU", (1, 1, 1, 2, 1), 0.5, 0.2, 0.6, 2 / 6,
        1, 1, 0, 0, None, "unresolved", "recovered",
    ),
    "recovered before": Case(
        "FPP", "FPP", (2, 1, 0, 0, 0), 2 / 3, 2 / 3, 2 / 3, 1,
        1, 0.5, 1 / 3, 0, None, "passed", "",
    ),
    # What is not decided is in the window, but in no streak and no flip.
    "aborted in mid-streak": Case(
        "PFAFUNF", "PFAFUNF", (1, 3, 1, 1, 1), 0.25, 1 / 6, 2 / 6, 4 / 7,
        1, 1 / 3, 1 / 6, 3, 7, "failed", "",
    ),
    "open since it failed": Case(
        "PPPPFU", "PPPPFU", (4, 1, 0, 1, 0), 0.8, 4 / 6, 5 / 6, 5 / 6,
        1, 0.25, 0.6, 1, 11, "unresolved", "regression new_failure",
    ),
    "aborted before the window": Case(
        "APPPPPPPPPPU", "PPPPPPPPPPU", (10, 0, 0, 1, 0), 1, 10 / 11, 1, 10 / 11,
        0, 0, 1, 0, None, "unresolved", "",
    ),
    # Words that nobody has documented are listed, and counted nowhere.
    "unknown word between": Case(
        "P?F", "P?F", (1, 1, 0, 0, 0), 0.5, 0.5, 0.5, 1,
        1, 1, 0, 1, 12, "failed", "regression",
    ),
    "unknown word alone": Case(
        "?", "?", (0, 0, 0, 0, 0), None, None, None, None,
        None, None, None, 0, None, None, "",
    ),
    "pending alone": Case(
        "N", "N", (0, 0, 0, 0, 1), None, None, None, 0,
        None, None, None, 0, None, "pending", "",
    ),
    "gone from the plan": Case(
        "PF..........", "PF", (1, 1, 0, 0, 0), 0.5, 0.5, 0.5, 1,
        1, 1, 0, 1, 2, "failed", "regression",
    ),
    "with a pause": Case(
        "F....F.....P", "FFP", (1, 2, 0, 0, 0), 1 / 3, 1 / 3, 1 / 3, 1,
        1, 0.5, 1 / 6, 0, None, "passed", "recovered",
    ),
}  # fmt: skip

CLASSES = ("flaky", "confirmed_flaky", "regression", "new_failure", "always_failing", "recovered")


def on_day(day: int, histories: Mapping[str, str]) -> dict[str, Any]:
    """Return the run of a day of March, with each history's letter of that day."""
    letters = {name: history.rjust(12, ".")[day - 1] for name, history in histories.items()}
    return a_run(noon(day), {name: letter.strip(".") for name, letter in letters.items()})


@pytest.mark.parametrize("days", [range(1, 13), (12, 3, 7, 1, 2, 11, 10, 9, 4, 8, 6, 5)])
def test_each_series_comes_to_what_was_worked_out(engine: Engine, days: Sequence[int]) -> None:
    histories = {name: case.history for name, case in CASES.items()}
    for number, day in enumerate(days):
        run = on_day(day, histories)
        see(engine, NOW + timedelta(minutes=number), {f"run-{day:02}": run})
    rows = {row["test"]: row for row in named_rows(engine, series)}
    assert rows.keys() == CASES.keys()
    assert {name: rounded(as_case(row)) for name, row in rows.items()} == {
        name: rounded(wanted(case)) for name, case in CASES.items()
    }


def as_case(row: Row) -> dict[str, Any]:
    return {
        "window": row["recent"],
        "p_f_a_u_n": [row[n] for n in ("passed", "failed", "aborted", "unresolved", "pending")],
        "decided": row["decided"],
        "rates": [row["pass_rate"], row["decided_share"]],
        "bounds": [row["pass_rate_strict"], row["pass_rate_low"], row["pass_rate_high"]],
        "flips": [row["flips"], row["flip_rate"], row["health"]],
        "streak": [row["fail_streak"], row["streak_since"]],
        "last": [row["last_status"], row["last_run_id"], row["last_started_at"]],
        "window_starts_at": row["window_starts_at"],
        "classes": " ".join(name for name in CLASSES if row[f"is_{name}"]),
        "of": [row[n] for n in ("source", "application", "plan", "environment_signature", "type")],
    }


def wanted(case: Case) -> dict[str, Any]:
    days = [day for day, letter in enumerate(case.history.rjust(12, "."), 1) if letter != "."]
    return {
        "window": case.window,
        "p_f_a_u_n": list(case.p_f_a_u_n),
        "decided": case.p_f_a_u_n[0] + case.p_f_a_u_n[1],
        "rates": [case.pass_rate, case.decided_share],
        "bounds": [case.strict_and_low, case.strict_and_low, case.high],
        "flips": [case.flips, case.flip_rate, case.health],
        "streak": [case.streak, moment(case.streak_since) if case.streak_since else None],
        "last": [case.last_status, f"run-{days[-1]:02}", moment(days[-1])],
        "window_starts_at": moment(days[-len(case.window)]),
        "classes": case.classes,
        "of": ["default", "shop", "nightly", ON_CHROME, "e2e"],
    }


def test_runs_that_began_together_are_in_the_order_of_their_ids(engine: Engine) -> None:
    """By code point: capitals before small letters, whatever language the database sorts by."""
    for run_id, letter in (("b", "F"), ("B", "U"), ("é", "P"), ("a", "A")):
        see(engine, NOW, {run_id: a_run(noon(1), {"home": letter})})
    names = ("recent", "last_run_id", "is_recovered")
    assert the(named_rows(engine, series), *names) == [("UAFP", "é", True)]


def test_a_name_that_a_run_has_twice_is_one_series_in_the_order_of_the_answer(
    engine: Engine,
) -> None:
    see(engine, NOW, {"run-1": a_run(noon(1), {"home": "PF"})})
    see(engine, NOW, {"run-2": a_run(noon(2), {"home": "FP", "cart": "P"})})
    names = ("test", "recent", "flips", "is_recovered", "window_starts_at")
    assert the(named_rows(engine, series), *names) == [
        ("cart", "P", 0, False, moment(2)),
        ("home", "PFFP", 2, True, moment(1)),
    ]


def test_tests_of_one_name_and_two_types_are_two_series(engine: Engine) -> None:
    tests = [
        {"name": "home", "type": "e2e", "status": "passed"},
        {"name": "home", "type": None, "status": "failed"},
        {"name": " home", "type": "e2e", "status": "aborted"},
        {"name": None, "type": "e2e", "status": "pending"},
        {"name": "", "type": "e2e", "status": None},
    ]
    see(engine, NOW, {"run-1": a_run(noon(1), {}, tests=tests)})
    assert the(named_rows(engine, series), "test", "type", "recent", "last_status") == [
        (" home", "e2e", "A", "aborted"),
        ("", "e2e", "?", None),
        ("home", "e2e", "P", "passed"),
        ("home", None, "F", "failed"),
        (None, "e2e", "N", "pending"),
    ]


def test_each_plan_and_each_set_of_environments_is_by_itself(engine: Engine) -> None:
    both, same = [CHROME, SAFARI], [SAFARI, CHROME | {"name": "generated"}, CHROME]
    see(engine, NOW, {"run-1": a_run(noon(1), {"home": "P"})})
    see(engine, NOW, {"run-2": a_run(noon(2), {"home": "F"}, environments=both)})
    see(engine, NOW, {"run-3": a_run(noon(3), {"home": "P"}, environments=same)})
    see(engine, NOW, {"run-4": a_run(noon(4), {"home": "A"}, name="smoke")})
    see(engine, NOW, {"run-5": a_run(noon(5), {"home": "U"}, application=None, name=None)})
    see(engine, NOW, {"run-6": a_run(noon(6), {"home": "N"}, environments=[])})
    names = ("application", "plan", "environment_signature", "recent")
    assert the(named_rows(engine, series), *names) == [
        ("", "", ON_CHROME, "U"),
        ("shop", "nightly", ON_BOTH, "FP"),
        ("shop", "nightly", ON_CHROME, "P"),
        ("shop", "nightly", "[]", "N"),
        ("shop", "smoke", ON_CHROME, "A"),
    ]
    assert the(named_rows(engine, daily_results), "day", "application", "plan", "runs") == [
        (date(2024, 3, 1), "shop", "nightly", 1),
        (date(2024, 3, 2), "shop", "nightly", 1),
        (date(2024, 3, 3), "shop", "nightly", 1),
        (date(2024, 3, 4), "shop", "smoke", 1),
        (date(2024, 3, 5), "", "", 1),
        (date(2024, 3, 6), "shop", "nightly", 1),
    ]


def test_blanks_around_names_make_no_other_plan(engine: Engine) -> None:
    see(engine, NOW, {"run-1": a_run(noon(1), {"home": "P"}, name=" nightly")})
    see(engine, NOW, {"run-2": a_run(noon(1), {"home": "F"}, application="\tshop ")})
    assert the(named_rows(engine, series), "application", "plan", "recent") == [
        ("shop", "nightly", "PF")
    ]
    assert the(named_rows(engine, daily_results), "application", "plan", "runs") == [
        ("shop", "nightly", 2)
    ]
    assert len(named_rows(engine, plan_variants)) == 1


@pytest.mark.parametrize("started_at", [None, "", "yesterday", "2024-03-01T12:00:00"])
def test_runs_that_nobody_knows_the_start_of_are_in_no_series_and_no_day(
    engine: Engine, started_at: str | None
) -> None:
    see(engine, NOW, {"run-1": a_run(started_at, {"home": "P"})})
    for table in (series, durations, daily_results, weekly_results):
        assert named_rows(engine, table) == []
    assert the(named_rows(engine, outcomes), "outcomes", "tests_passed") == [("P", 1)]
    see(engine, NOW, {"run-1": a_run(noon(1), {"home": "P"})})
    assert the(named_rows(engine, daily_results), "day", "passed") == [(date(2024, 3, 1), 1)]
    see(engine, NOW, {"run-1": a_run(started_at, {"home": "P"})})
    for table in (series, durations, daily_results, weekly_results):
        assert named_rows(engine, table) == []


def test_a_window_shows_three_undecided_results_for_each_decided_one(engine: Engine) -> None:
    """Of `open`, nothing is ever decided; `down` has never passed since its first run."""
    runs = {
        f"run-{number:04}": a_run(
            (moment(1) + timedelta(minutes=number)).isoformat(),
            {
                "open": "U",
                "down": "P" if number == 0 else "F",
                "rare": "F" if number in {0, 100} else "U",
            },
        )
        for number in range(1003)
    }
    see(engine, NOW, runs)
    rows = {row["test"]: row for row in named_rows(engine, series)}
    names = ("decided", "unresolved", "recent", "window_starts_at")
    assert {test: tuple(row[name] for name in names) for test, row in rows.items()} == {
        "open": (0, 30, "U" * 30, moment(1) + timedelta(minutes=973)),
        "down": (10, 0, "F" * 10, moment(1) + timedelta(minutes=993)),
        "rare": (2, 30, "FF" + "U" * 30, moment(1)),
    }
    assert (rows["down"]["fail_streak"], rows["down"]["streak_since"]) == (
        1002,
        moment(1) + timedelta(minutes=1),
    )


@pytest.mark.parametrize(
    ("window_results", "history", "classes"),
    [
        (3, "PPPF", "regression new_failure"),
        (3, "PF", "regression"),
        (3, "PFFF", "always_failing"),
        (3, "PFF", ""),
        (4, "PFPF", "flaky regression"),
    ],
)
def test_a_window_below_five_is_judged_when_it_is_full(
    engine: Engine, window_results: int, history: str, classes: str
) -> None:
    rules = Rules(window_results=window_results)
    derive_with(engine, Reporting("Europe/Berlin", *rules))
    for day, letter in enumerate(history, start=1):
        see(engine, NOW, {f"run-{day}": a_run(noon(day), {"home": letter})}, rules=rules)
    [row] = named_rows(engine, series)
    assert " ".join(name for name in CLASSES if row[f"is_{name}"]) == classes
    derive_with(engine, Reporting("Europe/Berlin"))
    see(engine, NOW, {"run-9": a_run(noon(9), {"home": "P"})})


def test_the_settings_decide_how_long_the_window_is_and_what_is_flaky(engine: Engine) -> None:
    rules = Rules(window_results=4, flaky_min_results=4, flaky_min_flips=1, flaky_min_flip_rate=0)
    for day, letter in enumerate("FPPFFA", start=1):
        see(engine, NOW, {f"run-{day}": a_run(noon(day), {"home": letter})}, rules=rules)
    names = ("recent", "flips", "is_flaky", "fail_streak")
    assert the(named_rows(engine, series), *names) == [("PPFFA", 1, True, 2)]
    see(engine, NOW, {"run-6": a_run(noon(6), {"home": "P"})})
    assert the(named_rows(engine, series), *names) == [("FPPFFP", 3, True, 0)]


# --- confirmed flaky ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "commits", "is_confirmed"),
    [
        ("PF", ["c1", "c1"], True),
        ("FAP", ["c1", "c1", "c1"], True),
        ("PF", ["c1", "c2"], False),
        ("PF", ["c1", None], False),
        ("PF", [None, None], False),
        ("PP", ["c1", "c1"], False),
        ("PU", ["c1", "c1"], False),
        ("PFPP", ["c1", "c2", "c2", "c1"], True),
        # The pass of c1 is out of the window of ten.
        ("PFFFFFFFFFF", ["c1"] + ["c2"] * 9 + ["c1"], False),
    ],
)
@pytest.mark.parametrize("is_labelled_first", [True, False])
def test_a_commit_that_passed_and_failed_confirms_that_a_test_is_flaky(
    engine: Engine, history: str, commits: Sequence[str | None], is_confirmed: bool,
    is_labelled_first: bool,
) -> None:  # fmt: skip
    """Be the commits known when the runs are archived, or told later."""
    runs = {
        f"run-{day:02}": a_run(noon(day), {"home": letter, "fine": "P"})
        for day, letter in enumerate(history, start=1)
    }
    labels = {run_id: commit for run_id, commit in zip(runs, commits, strict=True) if commit}
    if is_labelled_first:
        label(engine, labels)
        see(engine, NOW, runs)
    else:
        see(engine, NOW, runs)
        label(engine, labels)
    assert the(named_rows(engine, series), "test", "is_confirmed_flaky") == [
        ("fine", False),
        ("home", is_confirmed),
    ]


def test_a_commit_that_is_told_anew_is_believed(engine: Engine) -> None:
    label(engine, {"run-1": "c1", "run-2": "c2"})
    see(engine, NOW, {f"run-{day}": a_run(noon(day), {"home": " PF"[day]}) for day in (1, 2)})
    for commit, is_confirmed in (("c1", True), ("c3", False), ("c1", True)):
        label(engine, {"run-2": commit})
        [row] = named_rows(engine, series)
        assert row["is_confirmed_flaky"] is is_confirmed


# --- days and weeks -------------------------------------------------------------------------


def test_days_and_weeks_are_those_of_the_time_zone_also_when_the_clocks_change(
    engine: Engine,
) -> None:
    """In Berlin 31 March 2024 has 23 hours, and 27 October 25; each is a Sunday."""
    starts = {
        "2024-03-30T22:59:59.999Z": "F",  # 23:59:59.999 on Saturday
        "2024-03-30T23:00:00.000Z": "P",  # midnight
        "2024-03-31T21:59:59.999Z": "P",  # 23:59:59.999 in summer
        "2024-03-31T22:00:00.000Z": "U",  # Monday
        "2024-10-26T21:59:59.999Z": "F",  # 23:59:59.999 on Saturday, in summer
        "2024-10-26T22:00:00.000Z": "P",  # midnight
        "2024-10-27T00:30:00.000Z": "P",  # 02:30
        "2024-10-27T01:30:00.000Z": "A",  # 02:30 again
        "2024-10-27T22:59:59.999Z": "F",  # 23:59:59.999 in winter
        "2024-10-27T23:00:00.000Z": "U",  # Monday
        "2024-12-30T12:00:00.000Z": "P",  # Monday of the first week of 2025
        "2025-01-05T12:00:00.000Z": "F",
        "2025-01-06T12:00:00.000Z": "N",
    }
    see(engine, NOW, {f"run {at}": a_run(at, {"home": letter}) for at, letter in starts.items()})
    names = ("runs", "passed", "failed", "aborted", "unresolved", "pending")
    assert the(named_rows(engine, daily_results), "day", *names) == [
        (date(2024, 10, 26), 1, 0, 1, 0, 0, 0),
        (date(2024, 10, 27), 4, 2, 1, 1, 0, 0),
        (date(2024, 10, 28), 1, 0, 0, 0, 1, 0),
        (date(2024, 12, 30), 1, 1, 0, 0, 0, 0),
        (date(2024, 3, 30), 1, 0, 1, 0, 0, 0),
        (date(2024, 3, 31), 2, 2, 0, 0, 0, 0),
        (date(2024, 4, 1), 1, 0, 0, 0, 1, 0),
        (date(2025, 1, 5), 1, 0, 1, 0, 0, 0),
        (date(2025, 1, 6), 1, 0, 0, 0, 0, 1),
    ]
    assert the(named_rows(engine, weekly_results), "week_starts_on", *names) == [
        (date(2024, 10, 21), 5, 2, 2, 1, 0, 0),
        (date(2024, 10, 28), 1, 0, 0, 0, 1, 0),
        (date(2024, 12, 30), 2, 1, 1, 0, 0, 0),
        (date(2024, 3, 25), 3, 2, 1, 0, 0, 0),
        (date(2024, 4, 1), 1, 0, 0, 0, 1, 0),
        (date(2025, 1, 6), 1, 0, 0, 0, 0, 1),
    ]


def test_over_a_day_and_a_week_counts_are_summed_and_rates_never_averaged(engine: Engine) -> None:
    """Monday 4 March: 1 of 1 and 1 of 3, which is 2 of 4 and not the mean of 1 and 1/3."""
    see(
        engine,
        NOW,
        {
            "run-1": a_run(noon(4), {"home": "P"}, results={"passed": 7, "failed": 1}),
            "run-2": a_run(noon(4), {"home": "PFF", "cart": "AUUN?"}, results={"failed": 2}),
            "run-3": a_run(noon(5), {"home": "UU"}, results={"unresolved": 3, "pending": 1}),
            "run-4": a_run(noon(6), {}, results={"aborted": 1}),
        },
    )
    week = {
        "runs": 4, "tests": 11, "passed": 2, "failed": 2, "aborted": 1, "unresolved": 4,
        "pending": 1, "unknown": 1, "pass_rate": 0.5, "pass_rate_strict": 2 / 9,
        "decided_share": 0.4, "pass_rate_low": 2 / 9, "pass_rate_high": 6 / 9,
        "checks_passed": 7, "checks_failed": 3, "checks_aborted": 1, "checks_unresolved": 3,
        "checks_pending": 1, "check_pass_rate": 0.7,
    }  # fmt: skip
    monday = week | {
        "runs": 2, "tests": 9, "unresolved": 2, "pass_rate_strict": 2 / 7, "decided_share": 0.5,
        "pass_rate_low": 2 / 7, "pass_rate_high": 4 / 7, "checks_aborted": 0,
        "checks_unresolved": 0, "checks_pending": 0,
    }  # fmt: skip
    tuesday = dict.fromkeys(week, 0) | {
        "runs": 1, "tests": 2, "unresolved": 2, "pass_rate": None, "pass_rate_high": 1,
        "checks_unresolved": 3, "checks_pending": 1, "check_pass_rate": None,
    }  # fmt: skip
    wednesday = dict.fromkeys(week, 0) | {
        "runs": 1, "pass_rate": None, "pass_rate_strict": None, "decided_share": None,
        "pass_rate_low": None, "pass_rate_high": None, "checks_aborted": 1, "check_pass_rate": None,
    }  # fmt: skip
    plan = {"source": "default", "application": "shop", "plan": "nightly"}
    days = {row["day"].day: rounded(row) for row in named_rows(engine, daily_results)}
    assert days == {
        4: rounded(plan | {"day": date(2024, 3, 4), "iso_date": "2024-03-04"} | monday),
        5: rounded(plan | {"day": date(2024, 3, 5), "iso_date": "2024-03-05"} | tuesday),
        6: rounded(plan | {"day": date(2024, 3, 6), "iso_date": "2024-03-06"} | wednesday),
    }
    [row] = named_rows(engine, weekly_results)
    first_day = {"week_starts_on": date(2024, 3, 4), "iso_date": "2024-03-04"}
    assert rounded(row) == rounded(plan | first_day | week)


def test_counters_that_can_be_no_count_are_left_out(engine: Engine) -> None:
    absurd = {"passed": 10**12, "failed": -1, "aborted": 10**12 + 1, "unresolved": "many"}
    see(engine, NOW, {"run-1": a_run(noon(1), {}, results=absurd)})
    names = [f"checks_{word}" for word in ("passed", "failed", "aborted", "unresolved", "pending")]
    expected = [(10**12, 0, 0, 0, 0, 1)]
    for table in (daily_results, weekly_results, outcomes):
        assert the(named_rows(engine, table), *names, "check_pass_rate") == expected


# --- what a later revision changes ----------------------------------------------------------


def test_a_run_that_moves_leaves_nothing_behind(engine: Engine) -> None:
    """To another plan, other environments and another day, by itself and beside another run."""
    see(
        engine,
        NOW,
        {"run-1": a_run(noon(1), {"home": "P"}), "run-2": a_run(noon(2), {"home": "F"})},
    )
    moved = [
        a_run(noon(1), {"home": "P"}, name="smoke"),
        a_run(noon(1), {"home": "P"}, name="smoke", environments=[CHROME, SAFARI]),
        a_run(noon(11), {"home": "P"}, name="smoke", environments=[CHROME, SAFARI]),
    ]
    for minutes, run in enumerate(moved, start=1):
        see(engine, NOW + timedelta(minutes=minutes), {"run-1": run})
    assert the(named_rows(engine, series), "plan", "environment_signature", "recent") == [
        ("nightly", ON_CHROME, "F"),
        ("smoke", ON_BOTH, "P"),
    ]
    assert the(named_rows(engine, durations), "plan", "environment_signature", "measured") == [
        ("nightly", ON_CHROME, 1),
        ("smoke", ON_BOTH, 1),
    ]
    assert the(named_rows(engine, daily_results), "plan", "day", "runs", "passed", "failed") == [
        ("nightly", date(2024, 3, 2), 1, 0, 1),
        ("smoke", date(2024, 3, 11), 1, 1, 0),
    ]
    assert the(named_rows(engine, weekly_results), "plan", "week_starts_on", "runs") == [
        ("nightly", date(2024, 2, 26), 1),
        ("smoke", date(2024, 3, 11), 1),
    ]


def test_a_test_that_leaves_the_answer_leaves_its_series(engine: Engine) -> None:
    see(engine, NOW, {"run-1": a_run(noon(1), {"home": "P", "cart": "F"})})
    see(engine, NOW, {"run-2": a_run(noon(2), {"home": "P", "cart": "F", "pay": "P"})})
    see(engine, NOW + timedelta(hours=1), {"run-2": a_run(noon(2), {"home": "F"})})
    assert the(named_rows(engine, series), "test", "recent") == [("cart", "F"), ("home", "PF")]
    see(
        engine, NOW + timedelta(hours=2), {"run-1": a_run(noon(1), {}), "run-2": a_run(noon(2), {})}
    )
    assert named_rows(engine, series) == []
    assert the(named_rows(engine, daily_results), "day", "runs", "tests") == [
        (date(2024, 3, 1), 1, 0),
        (date(2024, 3, 2), 1, 0),
    ]


def test_each_revision_keeps_its_outcomes_and_how_long_they_were_valid(engine: Engine) -> None:
    later = NOW + timedelta(hours=1)
    see(engine, NOW, {"run-1": a_run(noon(1), {"home": "PU", "cart": "?N"}, status="unresolved")})
    see(engine, later, {"run-1": a_run(noon(1), {"home": "PF", "cart": "A"}, status="failed")})
    words = ("passed", "failed", "aborted", "unresolved", "pending", "unknown")
    names = ("outcomes", "observed_at", "superseded_at", *[f"tests_{word}" for word in words])
    assert the(named_rows(engine, outcomes), "revision", *names) == [
        (1, "PU?N", NOW, later, 1, 0, 0, 1, 1, 1),
        (2, "PFA", later, None, 1, 1, 1, 0, 0, 0),
    ]
    names = ("pass_rate", "pass_rate_strict", "pass_rate_low", "pass_rate_high", "decided_share")
    assert rounded(the(named_rows(engine, outcomes), "revision", *names)) == rounded(
        [(1, 1, 1 / 2, 1 / 2, 1, 1 / 3), (2, 1 / 2, 1 / 3, 1 / 3, 1 / 3, 2 / 3)]
    )
    names = ("status", "started_at", "ended_at", "duration_ms", "started_on")
    ended_at = moment(1) + timedelta(minutes=1)
    assert the(named_rows(engine, outcomes), *names) == [
        ("failed", moment(1), ended_at, 60_000, date(2024, 3, 1)),
        ("unresolved", moment(1), ended_at, 60_000, date(2024, 3, 1)),
    ]


# --- durations ------------------------------------------------------------------------------

DURATION_NAMES = (
    "measured", "p50_ms", "p95_ms", "p50_per_test_ms", "p50_last_7_days_ms",
    "p50_28_days_before_ms", "change", "last_run_id", "last_duration_ms", "p95_before_last_ms",
    "is_slow",
)  # fmt: skip


def see_durations(engine: Engine, *runs: tuple[timedelta, int | None, str]) -> None:
    """Store runs of one test, each so long before noon of 30 March, with duration and status."""
    see(
        engine,
        NOW,
        {
            f"run-{number:02}": a_run(
                (moment(30) - before).isoformat(), {"home": "P"}, duration=duration, status=status
            )
            for number, (before, duration, status) in enumerate(runs, start=1)
        },
    )


def test_percentiles_are_by_nearest_rank(engine: Engine) -> None:
    """Of 20 durations, p50 is the 10th and p95 the 19th; of the 19 before the last, the 19th."""
    in_no_order = [7, 1, 20, 12, 3, 18, 9, 14, 5, 16, 2, 11, 8, 19, 4, 17, 6, 13, 10, 15]
    see_durations(engine, *[(timedelta(hours=n), 100 * n, "passed") for n in in_no_order])
    assert the(named_rows(engine, durations), *DURATION_NAMES) == [
        (20, 1000, 1900, 1000, 1000, None, None, "run-02", 100, 2000, False)
    ]


def test_durations_look_back_from_the_last_run_that_was_measured(engine: Engine) -> None:
    """7 days, 28 before, and 30 in all: each without its older end."""
    day, ms = timedelta(days=1), timedelta(milliseconds=1)
    see_durations(
        engine,
        (-day, 9_000, "aborted"),
        (-day, 9_000, "pending"),
        (-day, None, "passed"),
        (0 * day, 300, "failed"),
        (7 * day - ms, 400, "unresolved"),
        (7 * day, 100, "passed"),
        (30 * day - ms, 200, "passed"),
        (30 * day, 5_000, "passed"),
        (35 * day - ms, 6_000, "passed"),
        (35 * day, 7_000, "passed"),
        (36 * day, 8_000, "passed"),
    )
    # The last 7 days: 300, 400. The 28 before: 100, 200, 5000, 6000. The 30: 100 to 400.
    assert the(named_rows(engine, durations), *DURATION_NAMES, "last_started_at") == [
        (4, 200, 400, 200, 300, 200, 0.5, "run-04", 300, None, False, moment(30))
    ]


@pytest.mark.parametrize(
    ("last_ms", "others_ms", "p95_before_ms", "is_slow"),
    [
        (501, [100, 200, 300, 400, 500], 500, True),
        (500, [100, 200, 300, 400, 500], 500, False),
        (9999, [100, 200, 300, 400], None, False),
        (0, [0, 0, 0, 0, 0], 0, False),
        (1, [0, 0, 0, 0, 0], 0, True),
    ],
)
def test_a_run_is_slow_above_the_p95_of_five_or_more_before_it(
    engine: Engine, last_ms: int, others_ms: list[int], p95_before_ms: int | None, is_slow: bool
) -> None:
    others = [(timedelta(hours=n), ms, "passed") for n, ms in enumerate(others_ms, start=1)]
    see_durations(engine, (timedelta(0), last_ms, "passed"), *others)
    assert the(named_rows(engine, durations), "p95_before_last_ms", "is_slow") == [
        (p95_before_ms, is_slow)
    ]


def test_where_runs_took_no_time_there_is_no_change_to_tell(engine: Engine) -> None:
    see_durations(engine, (timedelta(0), 500, "passed"), (timedelta(days=8), 0, "passed"))
    assert the(named_rows(engine, durations), *DURATION_NAMES) == [
        (2, 0, 500, 0, 500, 0, None, "run-01", 500, None, False)
    ]


def test_without_a_run_that_was_measured_there_are_no_durations(engine: Engine) -> None:
    unmeasured = [(500, "aborted"), (500, "pending"), (500, "cancelled"), (None, "passed")]
    see_durations(engine, *[(timedelta(0), ms, status) for ms, status in unmeasured])
    assert named_rows(engine, durations) == []


def test_the_time_for_a_test_is_that_of_the_run_shared_among_its_tests(engine: Engine) -> None:
    """600 / 2 and 900 / 4; a run without tests has none to share it among."""
    see(engine, NOW, {"run-1": a_run(noon(1), {"home": "PP"}, duration=600)})
    see(engine, NOW, {"run-2": a_run(noon(2), {"home": "PPPP"}, duration=900)})
    see(engine, NOW, {"run-3": a_run(noon(3), {}, duration=50)})
    assert the(named_rows(engine, durations), "measured", "p50_ms", "p50_per_test_ms") == [
        (3, 600, 225)
    ]


# --- status changes -------------------------------------------------------------------------

MINUTE_MS = 60_000


def test_what_was_unresolved_was_decided_within_two_bounds(engine: Engine) -> None:
    """The run ends at 12:01. It is open at 12:05 and 12:20, and decided when seen at 13:00."""
    first, again, decided = (moment(1) + timedelta(minutes=n) for n in (5, 20, 60))
    opened_at = moment(1) + timedelta(minutes=1)
    is_open = a_run(noon(1), {"home": "U", "cart": "U", "pay": "P"}, status="unresolved")
    for at in (first, again):
        see(engine, at, {"run-1": is_open})
    see(engine, decided, {"run-1": a_run(noon(1), {"home": "P", "cart": "F", "pay": "A"})})
    bounds = (again, decided, opened_at, 19 * MINUTE_MS, 59 * MINUTE_MS)
    names = ("last_seen_at", "changed_by", "opened_at", "resolution_min_ms", "resolution_max_ms")
    words = ("position", "test", "from_status", "to_status")
    assert the(named_rows(engine, status_changes), "revision", *words, *names) == [
        (2, 0, None, "unresolved", "passed", *bounds),
        (2, 1, "home", "unresolved", "passed", *bounds),
        (2, 2, "cart", "unresolved", "failed", *bounds),
        (2, 3, "pay", "passed", "aborted", again, decided, None, None, None),
    ]


def test_a_run_that_ends_after_it_was_seen_by_our_clock_was_decided_in_no_time(
    engine: Engine,
) -> None:
    """Its end is 12:01, by the clock of the API; by ours it is decided at 12:00:30."""
    seconds = [moment(1) + timedelta(seconds=n) for n in (10, 30)]
    for at, letter in zip(seconds, "UP", strict=True):
        see(engine, at, {"run-1": a_run(noon(1), {"home": letter})})
    names = ("from_status", "to_status", "resolution_min_ms", "resolution_max_ms")
    assert the(named_rows(engine, status_changes), *names) == [("unresolved", "passed", 0, 0)]


def test_without_an_end_a_run_is_open_since_it_was_seen_so(engine: Engine) -> None:
    times = [moment(1) + timedelta(minutes=n) for n in (0, 10, 30)]
    for at, letter in zip(times, "NUF", strict=True):
        see(engine, at, {"run-1": a_run(noon(1), {"home": letter}, duration=None)})
    names = ("from_status", "to_status", "opened_at", "resolution_min_ms", "resolution_max_ms")
    assert the(named_rows(engine, status_changes), "revision", *names) == [
        (2, "pending", "unresolved", None, None, None),
        (3, "unresolved", "failed", times[1], 0, 20 * MINUTE_MS),
    ]


def test_a_run_without_an_end_waits_through_later_changes_of_other_things(engine: Engine) -> None:
    """Seen open on day 1 and 2, with another test decided meanwhile, and decided on day 3."""
    days = [moment(day) for day in (1, 2, 3)]
    for at, letters in zip(
        days, ({"a": "U", "b": "U"}, {"b": "P", "a": "U"}, {"a": "P"}), strict=True
    ):
        see(engine, at, {"run-1": a_run(noon(1), letters, duration=None)})
    names = ("test", "opened_at", "resolution_min_ms", "resolution_max_ms")
    assert the(named_rows(engine, status_changes), "change", *names) == [
        ("changed", "a", days[0], 24 * 60 * MINUTE_MS, 48 * 60 * MINUTE_MS),
        ("changed", "b", days[0], 0, 24 * 60 * MINUTE_MS),
        ("left", "b", None, None, None),
    ]
    assert the(named_rows(engine, outcomes), "revision", "opened_at") == [
        (1, days[0]),
        (2, days[0]),
        (3, None),
    ]


def test_tests_that_come_and_go_change_from_nothing_and_to_nothing(engine: Engine) -> None:
    for minutes, tests in enumerate([{"home": "PU"}, {"home": "P"}, {"home": "P", "cart": "FP"}]):
        see(engine, NOW + timedelta(minutes=minutes), {"run-1": a_run(noon(1), tests)})
    names = ("position", "change", "test", "from_status", "to_status", "resolution_max_ms")
    assert the(named_rows(engine, status_changes), "revision", *names) == [
        (2, 2, "left", "home", "unresolved", None, None),
        (3, 2, "added", "cart", None, "failed", None),
        (3, 3, "added", "cart", None, "passed", None),
    ]


THREE = {"a": "U", "b": "P", "c": "F"}


@pytest.mark.parametrize(
    ("after", "changes"),
    [
        ({"b": "P", "a": "U", "c": "F"}, []),
        ({"b": "P", "c": "F"}, [(1, "left", "a", "unresolved", None)]),
        ({"new": "F", **THREE}, [(1, "added", "new", None, "failed")]),
        (
            {"b": "F", "c": "F"},
            [(1, "changed", "b", "passed", "failed"), (1, "left", "a", "unresolved", None)],
        ),
        ({"c": "F", "b": "P", "a": "P"}, [(3, "changed", "a", "unresolved", "passed")]),
    ],
)
def test_a_test_that_moved_in_the_answer_is_the_same_test(
    engine: Engine, after: Mapping[str, str], changes: list[tuple[Any, ...]]
) -> None:
    for minutes, letters in enumerate((THREE, after)):
        see(engine, NOW + timedelta(minutes=minutes), {"run-1": a_run(noon(1), letters)})
    names = ("position", "change", "test", "from_status", "to_status")
    assert the(named_rows(engine, status_changes), *names) == changes


def test_a_test_is_followed_by_its_id_when_it_is_renamed(engine: Engine) -> None:
    before = [("1", "pay", "unresolved"), ("2", "home", "passed")]
    after = [("3", "pay", "passed"), ("1", "pay by card", "failed"), ("4", "home", "passed")]
    for minutes, listed in enumerate((before, after)):
        tests = [{"id": test_id, "name": name, "status": word} for test_id, name, word in listed]
        see(engine, NOW + timedelta(minutes=minutes), {"run-1": a_run(noon(1), {}, tests=tests)})
    names = ("position", "change", "test", "from_status", "to_status")
    assert the(named_rows(engine, status_changes), *names) == [
        (1, "added", "pay", None, "passed"),
        (2, "changed", "pay by card", "unresolved", "failed"),
    ]


# --- two at once ----------------------------------------------------------------------------


def test_a_run_that_is_stored_while_another_counts_is_counted_later(postgresql_url: str) -> None:
    """The mark of the first run is taken away, which the second has found there."""
    engine = connect(postgresql_url)
    prepare(engine)

    def store(run_id: str, day: int, letter: str) -> None:
        with writing(engine) as connection:
            keep(connection, NOW, {run_id: a_run(noon(day), {"home": letter})})

    store("run-1", 1, "P")
    storing = threading.Thread(target=store, args=("run-2", 2, "F"))
    with writing(engine) as connection:
        marks.lock_plans(connection, [Plan("default", "shop", "nightly").plan_id])
        storing.start()
        storing.join(timeout=2)
        count_all(connection)
    storing.join()
    with writing(engine) as connection:
        count_all(connection)
    assert the(named_rows(engine, series), "recent") == [("PF",)]
    engine.dispose()
