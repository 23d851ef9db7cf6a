"""Each query of docs/QUESTIONS.md, on both databases, equals a count in plain Python."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from etl.config.settings import Reporting
from tests.db.test_charts import age_bucket
from tests.support import restated
from tests.support.month import Month, Row, as_day, rounded

PAGE = Path(__file__).parents[2] / "docs" / "QUESTIONS.md"
QUESTIONS = dict(
    re.findall(r"^## (.*?)\n.*?```sql\n(.*?)```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
)
SPELLING = (r"current_date - (\d+)", r"date('now', '-\1 days')")
"""The one difference between the databases, as the page says."""
DAYS = {"week_starts_on", "last_day", "iso_date"}
HOUR_MS = 3_600_000

Rows = Iterable[tuple[Any, ...]]
COUNTS: dict[str, Callable[[Month], Rows]] = {}


def ask(month: Month, question: str) -> list[Row]:
    """Return the rows of a query; moments and days are texts that both databases give alike."""
    query = QUESTIONS[question]
    if month.dialect == "sqlite":
        query = re.sub(*SPELLING, query)
    rows = month.ask(query)
    return rounded([{key: plain(key, value) for key, value in row.items()} for row in rows])


def plain(name: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(" ", "milliseconds").removesuffix("+00:00")
    return as_day(value) if name in DAYS else value


def text(moment: datetime | None) -> str | None:
    return plain("", moment) if moment else None


def answers(question: str) -> Callable[[Callable[[Month], Rows]], Callable[[Month], Rows]]:
    """Register the count for a question; its tuples have the query's columns in their order."""

    def register(count: Callable[[Month], Rows]) -> Callable[[Month], Rows]:
        COUNTS[question] = count
        return count

    return register


def today() -> date:
    return datetime.now(UTC).date()


def share(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None


def count_tests(run: restated.Run, status: str) -> int:
    return sum(test.status == status for test in run.tests)


def rate_of(runs: Iterable[restated.Run]) -> float | None:
    those = list(runs)
    passed = sum(count_tests(run, "passed") for run in those)
    return share(passed, passed + sum(count_tests(run, "failed") for run in those))


def group(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    found: defaultdict[Any, list[Any]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return dict(found)


@answers("Pass rate by branch and week")
def pass_rate_by_branch_and_week(month: Month) -> Rows:
    def key(run: restated.Run) -> tuple[str, str | None]:
        assert run.started_on
        monday = run.started_on - timedelta(days=run.started_on.weekday())
        return str(monday), month.labels[run.run_id].get("branch")

    dated = [run for run in month.runs if run.started_on]
    return [(*week, rate_of(runs)) for week, runs in group(dated, key).items()]


@answers("Build against build")
def build_against_build(month: Month) -> Rows:
    builds = {run_id: labels.get("build") for run_id, labels in month.labels.items()}
    for results in month.results.values():
        for one in results:
            for other in results:
                pair = builds[one.run.run_id], builds[other.run.run_id]
                if pair == ("1258", "1276") and one.test.status != other.test.status:
                    yield one.test.name, one.test.status, other.test.status


@answers("Flaky since which commit")
def flaky_since_which_commit(month: Month) -> Rows:
    for row, results in zip(month.series, month.results.values(), strict=True):
        if row["is_flaky"]:
            flip = last_flip(results)
            labels = month.labels[flip.run_id]
            yield (
                row["application"], row["plan"], newest(results).test.name, row["flips"],
                text(flip.started_at), labels.get("commit"), labels.get("branch"),
            )  # fmt: skip


def newest(results: list[restated.Result]) -> restated.Result:
    return max(results, key=lambda result: result.order)


def last_flip(results: list[restated.Result]) -> restated.Run:
    """Return the run of the last decided result that differs from the one before."""
    in_order = sorted(results, key=lambda result: result.order)
    decided = [result for result in in_order if result.test.is_decided]
    pairs = pairwise(decided)
    return [new.run for old, new in pairs if old.test.status != new.test.status][-1]


@answers("Time until a decision, by application")
def time_until_a_decision(month: Month) -> Rows:
    waiting = Counter[str]()
    for run in month.runs:
        waiting[run.application] += count_tests(run, "unresolved")
    for application, rows in group(month.resolutions, lambda row: row["application"]).items():
        least = sum(row["resolution_min_ms"] for row in rows) / len(rows) / HOUR_MS
        most = sum(row["resolution_max_ms"] for row in rows) / len(rows) / HOUR_MS
        yield application, len(rows), least, most, waiting[application] or None


@answers("A browser's pass rate")
def pass_rate_of_a_browser(month: Month) -> Rows:
    environments = {run.run_id: environments_of(month, run) for run in month.runs}
    alone = [run for run in month.runs if len(environments[run.run_id]) == 1]
    by_browser = group(alone, lambda run: environments[run.run_id][0].get("browser"))
    return [(browser, len(runs), rate_of(runs)) for browser, runs in by_browser.items()]


def environments_of(month: Month, run: restated.Run) -> list[dict[str, Any]]:
    environments: list[dict[str, Any]] = month.looks[run.run_id][-1].answer["environments"]
    return environments


@answers("Tests that never passed")
def never_passed(month: Month) -> Rows:
    for row, results in zip(month.series, month.results.values(), strict=True):
        words = [result.test.status for result in results]
        if "passed" not in words and "failed" in words:
            name = max(result.test.name or "" for result in results)
            yield row["application"], row["plan"], name, len(words)


@answers("Plans that did not run for 14 days")
def plans_that_did_not_run(month: Month) -> Rows:
    for plan, run in newest_runs(month).items():
        if run.started_on and run.started_on < today() - timedelta(days=14):
            yield *plan, str(run.started_on), run.run_id


def newest_runs(month: Month) -> dict[Any, restated.Run]:
    dated = [run for run in month.runs if run.started_at]
    by_plan = group(dated, lambda run: run.variant[:3])
    return {
        plan: max(runs, key=lambda run: (run.started_at, run.run_id))
        for plan, runs in by_plan.items()
    }


@answers("Regressions of the week")
def regressions_of_the_week(month: Month) -> Rows:
    since = datetime.combine(today() - timedelta(days=7), datetime.min.time(), UTC)
    for row, results in zip(month.series, month.results.values(), strict=True):
        if row["is_regression"] and row["streak_since"] >= since:
            name = newest(results).test.name
            started = text(row["streak_since"])
            yield row["application"], row["plan"], name, started, row["fail_streak"]


@answers("Failures by hour of the team's clock")
def failures_by_hour(month: Month) -> Rows:
    hours = group(month.runs, lambda run: hour_of(month, run))
    for hour, runs in hours.items():
        yield hour, sum(count_tests(run, "failed") for run in runs), len(runs)


def hour_of(month: Month, run: restated.Run) -> int | None:
    return run.started_at.astimezone(month.zone).hour if run.started_at else None


@answers("Each day, also those without a run")
def each_day(month: Month) -> Rows:
    by_day = group(month.runs, lambda run: run.started_on)
    for ago in range(30):
        day = today() - timedelta(days=ago)
        runs = by_day.get(day, [])
        yield str(day), len(runs), sum(count_tests(run, "failed") for run in runs)


@answers("Run minutes by plan")
def run_minutes_by_plan(month: Month) -> Rows:
    since = today() - timedelta(days=30)
    recent = [run for run in month.runs if run.started_on and run.started_on > since]
    for plan, runs in group(recent, lambda run: run.variant[:3]).items():
        times = [run.duration_ms for run in runs if run.duration_ms is not None]
        yield *plan, len(runs), sum(times) / 60_000 if times else None


@answers("Tests that are in one plan only")
def in_one_plan_only(month: Month) -> Rows:
    names = [
        (*key[:2], newest(results).test.name, key[2]) for key, results in month.results.items()
    ]
    for test, plans in group(names, lambda name: name[:3]).items():
        if len({plan for *_, plan in plans}) == 1:
            yield *test, plans[0][3]


@answers("The newest run of each plan")
def newest_run_of_each_plan(month: Month) -> Rows:
    for plan, run in newest_runs(month).items():
        yield *plan, run.run_id, run.status, text(run.started_at), rate_of([run])


@answers("Then and now")
def then_and_now(month: Month) -> Rows:
    then = datetime.combine(today() - timedelta(days=14), datetime.min.time(), UTC)
    statuses = Counter(
        (look.answer["status"], looks[-1].answer["status"])
        for looks in month.looks.values()
        for look in looks
        if look.observed_at <= then and (look.superseded_at is None or look.superseded_at > then)
    )
    return [(*words, count) for words, count in statuses.items()]


@answers("Unresolved tests by age")
def unresolved_tests_by_age(month: Month) -> Rows:
    waiting = [run for run in month.runs if count_tests(run, "unresolved")]
    for age, runs in group(waiting, lambda run: age_bucket(month.opened_at(run))).items():
        yield age, len(runs), sum(count_tests(run, "unresolved") for run in runs)


@answers("New tests by month")
def new_tests_by_month(month: Month) -> Rows:
    first_days = [
        min(str(result.run.started_on) for result in results) for results in month.results.values()
    ]
    return list(Counter(day[:7] for day in first_days).items())


@answers("Tests that are unresolved most often")
def unresolved_most_often(month: Month) -> Rows:
    found = Counter(
        (run.application, run.plan, test.name)
        for run in month.runs
        for test in run.tests
        if test.status == "unresolved"
    )
    return [(*test, count) for test, count in found.items()]


@answers("Top regressions")
def top_regressions(month: Month) -> Rows:
    for row, results in zip(month.series, month.results.values(), strict=True):
        if row["fail_streak"] and row["passed"]:
            yield (
                row["application"], row["plan"], newest(results).test.name, row["fail_streak"],
                text(row["streak_since"]), row["recent"],
            )  # fmt: skip


@answers("Time zone and rules of these figures")
def zone_and_rules(month: Month) -> Rows:
    rules = Reporting(time_zone=month.zone.key)
    for name in Reporting.__struct_fields__:
        yield f"reporting.{name}", str(getattr(rules, name))


def test_every_question_has_a_count() -> None:
    assert COUNTS.keys() == QUESTIONS.keys()
    assert len(QUESTIONS) >= 19


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_query_equals_a_count_in_plain_python(month: Month, question: str) -> None:
    found = ask(month, question)
    names = list(found[0])
    expected = [dict(zip(names, row, strict=True)) for row in COUNTS[question](month)]
    assert in_order(found) == in_order(rounded(expected))


def in_order(rows: list[Row]) -> list[list[tuple[str, Any]]]:
    return sorted((list(row.items()) for row in rows), key=repr)
