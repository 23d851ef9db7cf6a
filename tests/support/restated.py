"""METRICS once more, as plainly as they can be said, for tests to hold the archive against.

Works from the answers of the API, and shares nothing with etl but the settings. Slow on purpose:
goes through everything for each number. Rows are told by names, with no key that we make up.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import pairwise
from math import ceil
from typing import Any

from etl.config.settings import Rules

Numbers = dict[str, Any]
Answer = Mapping[str, Any]
"""What stands under `result`."""

LETTERS = {"passed": "P", "failed": "F", "aborted": "A", "unresolved": "U", "pending": "N"}
END = ("started_at", "run_id", "status", "pass_rate")
VARIANT = ("source", "application", "plan", "environment_signature")


@dataclass(frozen=True)
class Test:
    name: str | None
    type: str | None
    status: str | None

    @property
    def is_decided(self) -> bool:
        return self.status in {"passed", "failed"}


@dataclass(frozen=True)
class Run:
    run_id: str
    source: str
    application: str
    plan: str
    environments: str
    status: str | None
    started_at: datetime | None
    started_on: date | None
    duration_ms: int | None
    tests: tuple[Test, ...]
    checks: Mapping[str, int]
    commit: str | None

    @property
    def variant(self) -> tuple[str, str, str, str]:
        """The values of `VARIANT`."""
        return (self.source, self.application, self.plan, self.environments)


@dataclass(frozen=True)
class Result:
    """A test in a run; sorts as a series is ordered."""

    run: Run
    position: int
    test: Test

    @property
    def order(self) -> tuple[datetime, str, int]:
        assert self.run.started_at
        return (self.run.started_at, self.run.run_id, self.position)


def read(run_id: str, source: str, answer: Answer, zone: tzinfo, commit: str | None = None) -> Run:
    """Return the run that an answer of an account tells of."""
    started_at = moment(answer.get("started_at"))
    environments = {
        json.dumps(
            [each.get(name) for name in ("os", "browser", "device", "viewport")],
            separators=(",", ":"),
        )
        for each in answer.get("environments", [])
    }
    return Run(
        run_id,
        source,
        (answer.get("application") or "").strip(),
        (answer.get("name") or "").strip(),
        f"[{','.join(sorted(environments))}]",
        answer.get("status"),
        started_at,
        started_at.astimezone(zone).date() if started_at else None,
        answer.get("duration"),
        tuple(
            Test(each.get("name"), each.get("type"), each.get("status"))
            for each in answer.get("tests", [])
        ),
        {name: answer.get("results", {}).get(name, 0) for name in LETTERS},
        commit,
    )


def moment(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC) if text else None
    except ValueError:
        return None


def strip(tests: Iterable[Test]) -> str:
    return "".join(LETTERS.get(test.status or "", "?") for test in tests)


def rates(counted: Mapping[str, int]) -> Numbers:
    """The section "Pass rate"; P, F, A, U and N are what METRICS calls them."""
    p, f, a, u, n = (counted[name] for name in LETTERS)
    return {
        "pass_rate": p / (p + f) if p + f else None,
        "pass_rate_strict": p / (p + f + a + u) if p + f + a + u else None,
        "decided_share": (p + f) / (p + f + a + u + n) if p + f + a + u + n else None,
        "pass_rate_low": p / (p + f + a + u) if p + f + a + u else None,
        "pass_rate_high": (p + u) / (p + f + a + u) if p + f + a + u else None,
    }


def counted(tests: Iterable[Test]) -> dict[str, int]:
    words = Counter(test.status for test in tests)
    return {name: words[name] for name in LETTERS}


# --- series ---------------------------------------------------------------------------------


def series(runs: Iterable[Run], rules: Rules) -> list[Numbers]:
    """A row for each test of each plan under each set of environments."""
    results = [
        Result(run, position, test)
        for run in runs
        if run.started_at is not None
        for position, test in enumerate(run.tests)
    ]
    keys = {_series_key(result) for result in results}
    return [
        dict(zip((*VARIANT, "test", "type"), key, strict=True))
        | one_series([result for result in results if _series_key(result) == key], rules)
        for key in keys
    ]


def _series_key(result: Result) -> tuple[str | None, ...]:
    run, test = result.run, result.test
    return (*run.variant, test.name, test.type)


def one_series(results: Sequence[Result], rules: Rules) -> Numbers:
    results = sorted(results, key=lambda result: result.order)
    decided_places = [place for place, each in enumerate(results) if each.test.is_decided]
    if len(decided_places) >= rules.window_results:
        window = results[decided_places[-rules.window_results] :]
    else:
        window = results
    undecided = [each for each in window if not each.test.is_decided][-3 * rules.window_results :]
    window = [each for each in window if each.test.is_decided or each in undecided]
    decided = [each for each in window if each.test.is_decided]
    words = [each.test.status for each in decided]
    n = len(words)
    flips = sum(words[i] != words[i + 1] for i in range(n - 1))
    flip_rate = flips / (n - 1) if n >= 2 else None
    is_regression = words[-2:] == ["passed", "failed"]
    counts = counted(each.test for each in window)
    enough, flaky_min = min(5, rules.window_results), rules.flaky_min_results
    return {
        "decided": n,
        **counts,
        **rates(counts),
        "flips": flips if n else None,
        "flip_rate": flip_rate,
        "health": None if flip_rate is None else (counts["passed"] / n) * (1 - flip_rate),
        "is_flaky": (
            flip_rate is not None
            and n >= (flaky_min if rules.window_results >= 5 else min(flaky_min, enough))
            and flips >= rules.flaky_min_flips
            and flip_rate >= rules.flaky_min_flip_rate
        ),
        "is_confirmed_flaky": any(
            one.run.commit == other.run.commit is not None
            and {one.test.status, other.test.status} == {"passed", "failed"}
            for one in decided
            for other in decided
        ),
        "is_regression": is_regression,
        "is_new_failure": is_regression and words.count("failed") == 1 and n >= enough,
        "is_always_failing": n >= enough and "passed" not in words,
        "is_recovered": words[-2:] == ["failed", "passed"],
        **_streak(results),
        **_last_flip(decided),
        "recent": strip(each.test for each in window),
        "last_status": window[-1].test.status if window[-1].test.status in LETTERS else None,
        "last_run_id": window[-1].run.run_id,
        "last_started_at": window[-1].run.started_at,
        "window_starts_at": window[0].run.started_at,
        **_first_day(results),
    }


def _last_flip(decided: Sequence[Result]) -> Numbers:
    """The last run whose result differs from the one before, of those decided in the window."""
    flipped = [new for old, new in pairwise(decided) if old.test.status != new.test.status]
    return {
        "last_flip_at": flipped[-1].run.started_at if flipped else None,
        "last_flip_run_id": flipped[-1].run.run_id if flipped else None,
    }


def _first_day(results: Sequence[Result]) -> Numbers:
    first = min(each.run.started_on for each in results if each.run.started_on)
    return {"first_seen_on": first, "iso_date": f"{first:%Y-%m-%d}"}


def _streak(results: Sequence[Result]) -> Numbers:
    """How many decided results there are since the last pass, of all there ever were."""
    streak: list[Result] = []
    for result in results:
        if result.test.status == "passed":
            streak = []
        elif result.test.status == "failed":
            streak.append(result)
    return {
        "fail_streak": len(streak),
        "streak_since": streak[0].run.started_at if streak else None,
        "streak_since_run_id": streak[0].run.run_id if streak else None,
    }


# --- plans ----------------------------------------------------------------------------------


def plans(runs: Iterable[Run], rules: Rules) -> list[Numbers]:
    """A row for each plan: its ends, what is open and flaky, and how long it takes."""
    runs = list(runs)
    flaky = [each for each in series(runs, rules) if each["is_flaky"]]
    return [
        dict(zip(VARIANT, plan, strict=False))
        | one_plan(
            [run for run in runs if run.variant[:3] == plan],
            [each for each in flaky if tuple(each[name] for name in VARIANT[:3]) == plan],
            rules,
        )
        for plan in {run.variant[:3] for run in runs}
    ]


def one_plan(runs: Sequence[Run], flaky: Sequence[Numbers], rules: Rules) -> Numbers:
    started = sorted(
        (run for run in runs if run.started_at), key=lambda run: (run.started_at, run.run_id)
    )
    open_tests = [counted(run.tests)["unresolved"] for run in runs]
    row: Numbers = {
        "open_runs": sum(number > 0 for number in open_tests),
        "open_tests": sum(open_tests),
        "flaky_tests": 0,
        "p50_ms": None,
        "last_started_on": None,
        "iso_date": None,
    }
    if not started:
        ends = [f"{end}_{name}" for end in ("first", "last") for name in END]
        return row | dict.fromkeys(ends)
    for end, run in (("first", started[0]), ("last", started[-1])):
        values = (run.started_at, run.run_id, run.status, rates(counted(run.tests))["pass_rate"])
        row |= {f"{end}_{name}": value for name, value in zip(END, values, strict=True)}
    newest = started[-1]
    assert newest.started_at
    assert newest.started_on
    measured = [
        run.duration_ms
        for run in started
        if run.started_at
        and run.duration_ms is not None
        and run.status in {"passed", "failed", "unresolved", "completed"}
        and newest.started_at - run.started_at < timedelta(rules.window_days)
    ]
    return row | {
        "last_started_on": newest.started_on,
        "iso_date": f"{newest.started_on:%Y-%m-%d}",
        "flaky_tests": sum(
            newest.started_at - each["last_started_at"] < timedelta(90) for each in flaky
        ),
        "p50_ms": nearest_rank(measured, 0.5),
    }


# --- durations ------------------------------------------------------------------------------


def durations(runs: Iterable[Run], rules: Rules) -> list[Numbers]:
    """A row for each plan under each set of environments that has a run that was measured."""
    measured = [
        run
        for run in runs
        if run.started_at is not None
        and run.duration_ms is not None
        and run.status in {"passed", "failed", "unresolved", "completed"}
    ]
    keys = {run.variant for run in measured}
    return [
        dict(zip(VARIANT, key, strict=True))
        | one_duration([run for run in measured if run.variant == key], rules)
        for key in keys
    ]


def one_duration(runs: Sequence[Run], rules: Rules) -> Numbers:
    timed = sorted(
        (run.started_at, run.run_id, run.duration_ms, len(run.tests))
        for run in runs
        if run.started_at is not None and run.duration_ms is not None
    )
    last_started_at, last_run_id, last_ms, _ = timed[-1]

    def within(first_day: int, last_day: int) -> list[int]:
        """The durations of runs that began so many days before the last one, or less."""
        return [
            duration_ms
            for started_at, _, duration_ms, _ in timed
            if timedelta(first_day) <= last_started_at - started_at < timedelta(last_day)
        ]

    recent, before = nearest_rank(within(0, 7), 0.5), nearest_rank(within(7, 7 + 28), 0.5)
    window = [each for each in timed if last_started_at - each[0] < timedelta(rules.window_days)]
    others = [duration_ms for _, _, duration_ms, _ in window[:-1]]
    p95_before = nearest_rank(others, 0.95) if len(others) >= 5 else None
    per_test = [duration_ms // tests for _, _, duration_ms, tests in window if tests]
    return {
        "measured": len(window),
        "p50_ms": nearest_rank(within(0, rules.window_days), 0.5),
        "p95_ms": nearest_rank(within(0, rules.window_days), 0.95),
        "p50_per_test_ms": nearest_rank(per_test, 0.5),
        "p50_last_7_days_ms": recent,
        "p50_28_days_before_ms": before,
        "change": recent / before - 1 if recent is not None and before else None,
        "last_run_id": last_run_id,
        "last_started_at": last_started_at,
        "last_duration_ms": last_ms,
        "p95_before_last_ms": p95_before,
        "is_slow": p95_before is not None and last_ms > p95_before,
    }


def nearest_rank(values: Sequence[int], q: float) -> int | None:
    """The smallest value that has a rank of q * n or more."""
    for rank, value in enumerate(sorted(values), start=1):
        if rank >= ceil(round(q * len(values), 6)):
            return value
    return None


# --- days and weeks -------------------------------------------------------------------------


def daily(runs: Iterable[Run]) -> list[Numbers]:
    return _periods(runs, "day", lambda day: day)


def weekly(runs: Iterable[Run]) -> list[Numbers]:
    def monday(day: date) -> date:
        year, week, _ = day.isocalendar()
        return date.fromisocalendar(year, week, 1)

    return _periods(runs, "week_starts_on", monday)


def _periods(runs: Iterable[Run], name: str, first_day_of: Any) -> list[Numbers]:
    dated = [run for run in runs if run.started_on is not None]
    keys = {(*run.variant[:3], first_day_of(run.started_on)) for run in dated}
    rows = []
    for *plan, first_day in keys:
        those = [
            run
            for run in dated
            if [*run.variant[:3], first_day_of(run.started_on)] == [*plan, first_day]
        ]
        tests = [test for run in those for test in run.tests]
        counts = counted(tests)
        checks = {word: sum(run.checks[word] for run in those) for word in LETTERS}
        rows.append(
            {
                **dict(zip(VARIANT, plan, strict=False)),
                name: first_day,
                "iso_date": f"{first_day:%Y-%m-%d}",
                "runs": len(those),
                "tests": len(tests),
                **counts,
                "unknown": sum(test.status not in LETTERS for test in tests),
                **rates(counts),
                **{f"checks_{word}": count for word, count in checks.items()},
                "check_pass_rate": rates(checks)["pass_rate"],
            }
        )
    return rows


# --- history --------------------------------------------------------------------------------


@dataclass
class Stretch:
    """How long a run was seen with the same answer."""

    answer: Answer
    observed_at: datetime
    last_seen_at: datetime


def status_changes(run_id: str, stretches: Sequence[Stretch]) -> list[Numbers]:
    rows = []
    for number, (old, new) in enumerate(pairwise(stretches), start=2):
        for position, change, was, becomes in _changes(old.answer, new.answer):
            if was.get("status") == becomes.get("status"):
                continue
            is_decision = change == "changed" and was.get("status") == "unresolved"
            before = stretches[: number - 1]
            opened_at = (
                (ended_at(old.answer) or _first_seen_open(before, was)) if is_decision else None
            )
            rows.append(
                {
                    "run_id": run_id,
                    "revision": number,
                    "position": position,
                    "change": change,
                    "test": (becomes or was).get("name") if position else None,
                    "from_status": was.get("status"),
                    "to_status": becomes.get("status"),
                    "last_seen_at": old.last_seen_at,
                    "changed_by": new.observed_at,
                    "opened_at": opened_at,
                    "resolution_min_ms": _ms(old.last_seen_at, opened_at),
                    "resolution_max_ms": _ms(new.observed_at, opened_at),
                }
            )
    return rows


def ended_at(answer: Answer) -> datetime | None:
    started_at, duration = moment(answer.get("started_at")), answer.get("duration")
    over = {"passed", "failed", "aborted", "completed", "unresolved"}
    if started_at is None or duration is None or answer.get("status") not in over:
        return None
    return started_at + timedelta(milliseconds=duration)


def _first_seen_open(stretches: Sequence[Stretch], part: Answer) -> datetime:
    """When a test of the last stretch, or its run, was first seen as open as it still is there."""
    since = stretches[-1].observed_at
    for older, newer in reversed(list(pairwise(stretches))):
        [part] = [
            was for _, _, was, is_now in _changes(older.answer, newer.answer) if is_now is part
        ]
        if part.get("status") != "unresolved":
            break
        since = older.observed_at
    return since


def opened_at(stretches: Sequence[Stretch]) -> datetime | None:
    """Since when a run waits, by its last stretch: its end, or when it was first seen open."""
    since = None
    for stretch in stretches:
        is_open = any(test.get("status") == "unresolved" for test in stretch.answer["tests"])
        since = (since or stretch.observed_at) if is_open else None
    return since and (ended_at(stretches[-1].answer) or since)


def _changes(before: Answer, after: Answer) -> Iterator[tuple[int, str, Answer, Answer]]:
    """Position, kind, and both states of the run and of each of its tests."""
    yield 0, "changed", before, after
    old, new = before.get("tests", []), after.get("tests", [])
    partners = _partners(old, new)
    for place, test in enumerate(new):
        if place in partners:
            yield place + 1, "changed", old[partners[place]], test
        else:
            yield place + 1, "added", {}, test
    for place, test in enumerate(old):
        if place not in partners.values():
            yield place + 1, "left", test, {}


def _partners(old: Sequence[Answer], new: Sequence[Answer]) -> dict[int, int]:
    """By the place of a test its place before: the first free one by id, else by name and type."""
    partners: dict[int, int] = {}
    for names in (["id"], ["name", "type"]):
        for place, test in enumerate(new):
            wanted = [test.get(name) for name in names]
            if place in partners or wanted in ([None], [""]):
                continue
            for before, each in enumerate(old):
                if before not in partners.values() and [each.get(n) for n in names] == wanted:
                    partners[place] = before
                    break
    return partners


def _ms(until: datetime, since: datetime | None) -> int | None:
    return None if since is None else max(0, round((until - since).total_seconds() * 1000))
