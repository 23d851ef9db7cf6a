"""Each chart's query, on both databases, equals a count in plain Python."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from etl.bi.chart_catalog import read_catalog
from etl.bi.chart_sql import chart_sql
from etl.bi.for_grafana import make as make_dashboard
from etl.bi.for_grafana import panel_sql
from etl.bi.view_columns import FILTERS, BiSource, read_views
from etl.config.settings import DEFAULT_RULES, Reporting
from tests.support import restated
from tests.support.month import Month, Row, as_day, rounded

CATALOG = read_catalog()
OUTCOMES = ("passed", "failed", "aborted", "unresolved", "pending")
HOUR_MS = 3_600_000


def ask(month: Month, name: str, *filters: str) -> list[Row]:
    """Return the rows of a chart; days as text."""
    schema = "reporting" if month.dialect == "postgresql" else None
    rows = month.ask(chart_sql(CATALOG, CATALOG.charts[name], schema, filters))
    return rounded([{key: plain(key, value) for key, value in row.items()} for row in rows])


def plain(name: str, value: Any) -> Any:
    if name in {"day", "started_on", "week_starts_on"}:
        return as_day(value)
    return bool(value) if name.startswith("is_") else value


def count_by(runs: Iterable[restated.Run], key: Callable[[restated.Run], Any]) -> dict[Any, Any]:
    """Return the number of tests of each status, by a key of their run."""
    found: defaultdict[Any, Counter[str]] = defaultdict(Counter)
    for run in runs:
        if run.started_on:
            found[key(run)].update(test.status for test in run.tests if test.status in OUTCOMES)
    return dict(found)


def share(numerator: int, denominator: int) -> float | None:
    return round(numerator / denominator, 9) if denominator else None


def pass_rate_by_day(month: Month) -> list[Row]:
    return [
        {
            "day": day,
            "pass_rate": share(n["passed"], n["passed"] + n["failed"]),
            "pass_rate_low": share(n["passed"], n.total() - n["pending"]),
            "pass_rate_high": share(n["passed"] + n["unresolved"], n.total() - n["pending"]),
        }
        for day, n in sorted(count_by(month.runs, lambda run: str(run.started_on)).items())
    ]


def runs_by_status(month: Month) -> list[Row]:
    counts = Counter(run.status for run in month.runs)
    return [{"status": status, "run_count": count} for status, count in counts.items()]


def weekly_outcomes(month: Month) -> list[Row]:
    def monday(run: restated.Run) -> str:
        assert run.started_on
        return str(run.started_on - timedelta(days=run.started_on.weekday()))

    return [
        {"week_starts_on": week, **{name: counts[name] for name in OUTCOMES[:4]}}
        for week, counts in sorted(count_by(month.runs, monday).items())
    ]


def run_minutes_by_day(month: Month) -> list[Row]:
    minutes: defaultdict[tuple[str, str], int] = defaultdict(int)
    for run in month.runs:
        if run.started_on and run.duration_ms is not None:
            minutes[str(run.started_on), run.application] += run.duration_ms
    return [
        {"started_on": day, "application": application, "run_minutes": round(total / 60_000, 9)}
        for (day, application), total in minutes.items()
    ]


def failing_tests(month: Month) -> list[Row]:
    names = ("application", "plan", "fail_streak", "is_new_failure", "recent")
    failing = [row for row in month.series if row["fail_streak"]]
    return [{name: row[name] for name in names} for row in failing]


def flaky_tests(month: Month) -> list[Row]:
    names = ("application", "plan", "recent", "decided", "flips", "flip_rate", "pass_rate")
    return [{name: row[name] for name in names} for row in month.series if row["is_flaky"]]


def backlog_by_age(month: Month) -> list[Row]:
    tests, runs = Counter[str](), Counter[str]()
    for run in month.runs:
        if waiting := sum(test.status == "unresolved" for test in run.tests):
            bucket = age_bucket(month.opened_at(run))
            tests[bucket] += waiting
            runs[bucket] += 1
    return [
        {"age_bucket": each, "open_tests": tests[each], "run_count": runs[each]} for each in tests
    ]


def age_bucket(opened_at: datetime) -> str:
    age = datetime.now(UTC) - opened_at
    limits = {1: "0 to 1 days", 3: "1 to 3 days", 7: "3 to 7 days", 14: "7 to 14 days"}
    return next((name for days, name in limits.items() if age.days < days), "over 14 days")


def decision_times(month: Month) -> list[Row]:
    groups: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in month.resolutions:
        groups[row["application"], row["to_status"]].append(row)
    return [
        {
            "application": application,
            "to_status": status,
            "decisions": len(rows),
            "mean_hours_at_least": mean(row["resolution_min_ms"] for row in rows),
            "mean_hours_at_most": mean(row["resolution_max_ms"] for row in rows),
        }
        for (application, status), rows in groups.items()
    ]


def mean(values: Iterable[int]) -> float:
    given = list(values)
    return round(sum(given) / len(given) / HOUR_MS, 9)


def environment_coverage(month: Month) -> list[Row]:
    days: defaultdict[tuple[str | None, ...], list[str]] = defaultdict(list)
    names = ("os", "browser", "device", "viewport")
    for run in month.runs:
        for each in month.looks[run.run_id][-1].answer["environments"]:
            days[tuple(each.get(name) for name in names)].append(str(run.started_on or ""))
    return [
        dict(zip(names, environment, strict=True))
        | {"run_count": len(found), "newest_day": max(found) or None}
        for environment, found in days.items()
    ]


def slowest_plans(month: Month) -> list[Row]:
    names = ("application", "plan", "measured", "p50_ms", "p95_ms", "change", "is_slow")
    rows = restated.durations(month.runs, DEFAULT_RULES)
    return [{name: row[name] for name in (*names, "last_run_id")} for row in rows]


def zone_and_rules(month: Month) -> list[Row]:
    rules = Reporting(time_zone=month.zone.key)
    return [
        {"name": f"reporting.{name}", "value": str(getattr(rules, name))}
        for name in Reporting.__struct_fields__
    ]


COUNTED = {
    each.__name__: each
    for each in (
        pass_rate_by_day, runs_by_status, weekly_outcomes, run_minutes_by_day, failing_tests,
        flaky_tests, backlog_by_age, decision_times, environment_coverage, slowest_plans,
        zone_and_rules,
    )
}  # fmt: skip


def test_every_chart_has_a_count() -> None:
    assert COUNTED.keys() == CATALOG.charts.keys()


@pytest.mark.parametrize("name", CATALOG.charts)
def test_a_chart_equals_a_count_in_plain_python(month: Month, name: str) -> None:
    expected = rounded(COUNTED[name](month))
    assert expected
    found = [{key: row[key] for key in expected[0]} for row in ask(month, name)]
    assert in_order(found) == in_order(expected)


def in_order(rows: list[Row]) -> list[list[tuple[str, Any]]]:
    return sorted((list(row.items()) for row in rows), key=repr)


@pytest.mark.parametrize("name", CATALOG.charts)
def test_a_chart_is_in_the_order_that_it_names(month: Month, name: str) -> None:
    """Texts sort by the database's language, so the first column of the order is compared."""
    first = CATALOG.charts[name].order[0]
    values = [row[first.removeprefix("-")] for row in ask(month, name)]
    known = [value for value in values if value is not None]
    if all(isinstance(value, (int, float)) for value in known) or first in {"day", "started_on"}:
        assert known == sorted(known, reverse=first.startswith("-"))


NO_FILTER = {f"${{{name}:sqlstring}}": "'__all__'" for name in FILTERS}
"""The variables of a panel as Grafana fills them in where no filter is set."""


@pytest.mark.parametrize("name", CATALOG.charts)
def test_a_panel_of_grafana_shows_the_chart_to_the_reader(
    month_postgresql: Month, name: str
) -> None:
    when = CATALOG.charts[name].when
    has_time = [f"{when} IS NOT NULL"] if when else []
    found = panel(month_postgresql, name, NO_FILTER)
    assert found
    assert in_order(found) == in_order(ask(month_postgresql, name, *has_time))


OF_RUNS = [name for name, chart in CATALOG.charts.items() if chart.view != "archive_settings"]
"""The charts that can be filtered by application and plan."""


@pytest.mark.parametrize("name", OF_RUNS)
def test_a_filter_of_grafana_leaves_its_application(month_postgresql: Month, name: str) -> None:
    all_rows = panel(month_postgresql, name, NO_FILTER)
    one = panel(
        month_postgresql, name, NO_FILTER | {"${application:sqlstring}": "'Storefront','Nobody'"}
    )
    if all_rows[0].get("application"):
        assert one == [row for row in all_rows if row["application"] == "Storefront"]
    assert one != all_rows
    assert panel(month_postgresql, name, NO_FILTER | {"${plan:sqlstring}": "'Nobody'"}) == []


def test_a_variable_of_grafana_lists_its_values(month_postgresql: Month) -> None:
    [content] = make_dashboard(grafana_source(month_postgresql)).values()
    variables = json.loads(content)["templating"]["list"]
    found = {
        each["name"]: {row[each["name"]] for row in month_postgresql.ask(each["query"])}
        for each in variables
        if each["type"] == "query"
    }
    runs = month_postgresql.runs
    branches = {labels.get("branch") for labels in month_postgresql.labels.values()}
    names = {name: {getattr(run, name) for run in runs} for name in FILTERS if name != "branch"}
    assert found == names | {"branch": branches}


def panel(month: Month, name: str, values: dict[str, str]) -> list[Row]:
    """Return the rows of a panel, over all time."""
    query = panel_sql(grafana_source(month), CATALOG.charts[name])
    for variable, value in values.items():
        query = query.replace(variable, value)
    query = re.sub(
        r"\$__timeFilter\((\w+)\)", r"\1 BETWEEN '2000-01-01T00:00:00Z' AND '2100-01-01'", query
    )
    assert "$" not in query
    rows = [
        {CATALOG.charts[name].time if key == "time" else key: value for key, value in row.items()}
        for row in month.ask(query)
    ]
    return rounded([{key: plain(key, value) for key, value in row.items()} for row in rows])


def grafana_source(month: Month) -> BiSource:
    with month.engine.connect() as connection:
        views = read_views(connection)
    return BiSource(CATALOG, views, month.dialect, "reporting", "reporting", month.engine.url, "")


def test_every_column_is_one_of_its_view(month: Month) -> None:
    rows = month.ask(
        "SELECT object_name, column_name FROM "
        f"{'reporting.' if month.dialect == 'postgresql' else ''}data_dictionary"
    )
    columns = {(row["object_name"], row["column_name"]) for row in rows}
    for chart in CATALOG.charts.values():
        names = {*chart.columns, *chart.dimensions, *filter(None, [chart.when])}
        assert {(chart.view, each) for each in names} <= columns
    for measure in CATALOG.measures.values():
        names = {*measure.sum, *measure.over, *filter(None, [measure.mean, measure.newest])}
        assert {(view, each) for view in measure.views for each in names} <= columns
