"""What the numbers mean, apart from any database. The whole of it is in test_golden."""

import random
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta

import pytest

from etl.config.settings import Rules
from etl.derived import plans
from etl.derived.aggregates import list_metrics
from etl.derived.duration_metrics import compute_durations
from etl.derived.metrics import (
    Counts,
    Rates,
    compute_rates,
    count_letters,
    encode_strip,
    percentile,
    read_checks,
)
from etl.derived.period_metrics import (
    Period,
    sum_days,
    sum_periods,
    sum_weeks,
    week_start,
)
from etl.derived.plans import IdentityRule, NamedTest, PlanRun, Roster, build_plan
from etl.derived.series_metrics import Series, compute_series

START = datetime(2024, 3, 1, 12, tzinfo=UTC)
HOME = NamedTest("home", "e2e")


def build_roster(roster_id: str, tests: Iterable[NamedTest], rule: IdentityRule) -> Roster:
    return plans.TestIdentities(rule).build_roster(roster_id, tests)


[KEY] = build_roster("", [HOME], IdentityRule()).keys


def a_run(number: int, letters: str, tests: Sequence[NamedTest] = (HOME,)) -> PlanRun:
    """Return the run of a day; it has a test for each letter."""
    started_at = START + timedelta(days=number)
    checks = Counts(passed=number)
    named = build_roster("".join(str(each) for each in tests), tests, IdentityRule())
    return PlanRun(
        f"run-{number:03}", "v", "passed", started_at, started_at.date(), 1000, checks, letters,
        named, None,
    )  # fmt: skip


def newest_first(history: str) -> list[PlanRun]:
    """Return the runs of one test, a run for each letter of its history."""
    return [a_run(number, letter) for number, letter in enumerate(history)][::-1]


def window_start(found: Series) -> datetime:
    """Return the start of the first run in the window."""
    return found.run_at(found.verdict.window[-1]).started_at


# --- counting -------------------------------------------------------------------------------


def test_a_status_is_a_letter_and_any_other_word_a_question_mark() -> None:
    words = [
        "passed",
        "failed",
        "aborted",
        "unresolved",
        "pending",
        "completed",
        "Passed",
        "",
        None,
    ]
    assert encode_strip(words) == "PFAUN????"
    assert count_letters("PPPFFAUUUUN????") == Counts(3, 2, 1, 4, 1)
    assert count_letters("") == Counts()


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (Counts(), Rates(None, None, None, None, None)),
        (Counts(pending=3), Rates(None, None, 0, None, None)),
        (Counts(aborted=1, unresolved=2, pending=1), Rates(None, 0, 0, 0, 2 / 3)),
        (Counts(failed=1), Rates(0, 0, 1, 0, 0)),
        (Counts(passed=9, failed=1), Rates(0.9, 0.9, 1, 0.9, 0.9)),
        (Counts(3, 1, 2, 4, 10), Rates(0.75, 0.3, 0.2, 0.3, 0.7)),
    ],
)
def test_rates_are_shares_of_what_can_be_known(counts: Counts, expected: Rates) -> None:
    assert compute_rates(counts) == pytest.approx(expected)


def test_counters_that_can_be_no_count_are_left_out() -> None:
    most = 10**12
    told = {"passed": most, "failed": most + 1, "aborted": -1, "unresolved": None, "other": 5}
    assert read_checks(told) == Counts(passed=most)


def test_plans_are_known_by_their_names_without_blanks_at_the_ends() -> None:
    assert build_plan("eu", " shop\n", "nightly run ") == ("eu", "shop", "nightly run")
    assert build_plan("eu", None, None) == ("eu", "", "")
    assert build_plan("eu", "a", "b").plan_id == build_plan("eu", "a ", " b").plan_id
    different = [
        build_plan("eu", "a", "b"),
        build_plan("us", "a", "b"),
        build_plan("eua", "b", ""),
        build_plan("eu", "ab", ""),
        build_plan("eu", "", "ab"),
        build_plan("eu", "b", "a"),
    ]
    assert len({plan.plan_id for plan in different}) == 6


# --- series ---------------------------------------------------------------------------------


def test_only_what_is_wanted_is_read_and_only_as_far_as_it_matters() -> None:
    read = []

    def reading() -> Iterator[PlanRun]:
        for run in newest_first("PFPFPFPFPFPFPFPF"):
            read.append(run.run_id)
            yield run

    [found] = compute_series(reading(), Rules(window_results=3), {KEY})
    assert (found.verdict.recent, window_start(found)) == ("FPF", START + timedelta(days=13))
    assert len(read) < 8
    assert compute_series(reading(), Rules(), {"another key"}) == []


def test_series_that_were_not_seen_lately_are_left_out_and_change_no_other() -> None:
    """Whatever tests come, go and return, and however often a run has one of them."""
    tests = [NamedTest(name, "e2e") for name in "abcd"]
    for seed in range(60):
        dice = random.Random(seed)
        runs = []
        for number in range(dice.choice([5, 40, 90]), 0, -1):
            chosen = dice.choices(tests, k=dice.randrange(5))
            letters = "".join(dice.choices("PPPFFUA?", k=len(chosen)))
            runs.append(a_run(number, letters, chosen))
        since = START + timedelta(days=dice.randrange(90))
        every = compute_series(runs, Rules())
        seen = compute_series(runs, Rules(), seen_since=since)
        assert [facts(each) for each in seen] == [
            facts(each) for each in every if each.last_started_at >= since
        ]


def facts(found: Series) -> Sequence[object]:
    """Return the figures in the rows of a series."""
    return (found.test_key, *found.test, *list_metrics(found))


def test_a_window_shows_the_newest_undecided_results() -> None:
    [found] = compute_series(newest_first("P" + "A" * 500 + "U" * 9), Rules(window_results=4))
    assert found.verdict.recent == "PAAA" + "U" * 9
    assert (found.verdict.flips, window_start(found)) == (0, START)
    [found] = compute_series(newest_first("U" * 500), Rules(window_results=4))
    assert (found.verdict.recent, found.verdict.flips) == ("U" * 12, None)


@pytest.mark.parametrize("failures", [1, 9, 10, 11, 500])
def test_a_streak_is_counted_beyond_the_window(failures: int) -> None:
    [found] = compute_series(newest_first("FP" + "F" * failures), Rules())
    assert found.verdict.fail_streak == failures
    assert found.verdict.streak_place is not None
    assert found.run_at(found.verdict.streak_place).started_at == START + timedelta(days=2)
    assert found.verdict.is_always_failing == (failures >= 10)


def test_tests_are_known_by_ids_only_where_ids_repeat() -> None:
    tests = [NamedTest("home", "e2e", "id 1"), NamedTest("new home", "e2e", "id 1"), HOME]
    by_id = build_roster("r", tests, IdentityRule(by_id=True)).keys
    assert by_id[0] == by_id[1] != by_id[2]
    by_name = build_roster("r", tests, IdentityRule()).keys
    assert by_name[0] == by_name[2] != by_name[1]


def test_a_series_bears_the_name_that_its_test_has_now() -> None:
    naming = IdentityRule(by_id=True)
    old = build_roster("old", [NamedTest("home", "e2e", "id 1")], naming)
    new = build_roster("new", [NamedTest("start", "e2e", "id 1")], naming)
    runs = [a_run(1, "F")._replace(roster=new), a_run(0, "P")._replace(roster=old)]
    [found] = compute_series(runs, Rules())
    assert (found.test.name, found.verdict.recent) == ("start", "PF")


# --- days and weeks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        (date(2024, 12, 29), date(2024, 12, 23)),
        (date(2024, 12, 30), date(2024, 12, 30)),
        (date(2025, 1, 5), date(2024, 12, 30)),
        (date(1, 1, 1), date(1, 1, 1)),
        (date(9999, 12, 31), date(9999, 12, 27)),
    ],
)
def test_weeks_begin_on_monday(day: date, expected: date) -> None:
    assert week_start(day) == expected


def test_days_are_summed_in_their_order() -> None:
    runs = [a_run(1, "P"), a_run(0, "F?", [HOME, HOME]), a_run(1, "U")]
    first, second = days = sum_days(runs)
    assert first == Period(date(2024, 3, 1), 1, 2, Counts(failed=1), Counts())
    assert first.unknown == 1
    assert second == Period(date(2024, 3, 2), 2, 2, Counts(1, 0, 0, 1), Counts(passed=2))
    assert sum_periods([second, first]) == days
    assert sum_weeks(days) == [
        Period(date(2024, 2, 26), 3, 4, Counts(1, 1, 0, 1), Counts(passed=2))
    ]
    assert sum_days([a_run(0, "P")._replace(started_on=None)]) == []


# --- durations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7], 50, 7),
        ([7], 95, 7),
        ([2, 1], 50, 1),
        ([3, 1, 2], 50, 2),
        ([4, 3, 2, 1], 50, 2),
        (list(range(1, 21)), 95, 19),
        (list(range(1, 22)), 95, 20),
        (list(range(1, 101)), 95, 95),
        ([0, 0, 5], 50, 0),
        ([5, 5, 5, 9], 100, 9),
        ([5, 9], 0, 5),
    ],
)
def test_percentiles_are_by_nearest_rank(values: list[int], percent: int, expected: int) -> None:
    assert percentile(values, percent) == expected


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(IndexError):
        percentile([], 50)


def test_only_runs_that_were_over_by_themselves_are_measured() -> None:
    words = ["passed", "failed", "unresolved", "aborted", "pending", "completed", "", None]
    runs = [a_run(number, "PP")._replace(status=word) for number, word in enumerate(words)][::-1]
    found = compute_durations(runs, Rules())
    assert found
    assert (found.measured, found.last_run_id, found.p50_per_test_ms) == (4, "run-005", 500)
    assert compute_durations([run._replace(duration_ms=None) for run in runs], Rules()) is None


def test_a_run_like_those_before_it_is_not_slow() -> None:
    found = compute_durations(newest_first("P" * 9), Rules())
    assert found
    assert (found.p50_ms, found.change, found.p95_before_last_ms) == (1000, 0, 1000)
    assert not found.is_slow
    assert compute_durations([], Rules()) is None
