"""The sections of the page: charts and explanations of each report, for readers without context.

Charts are drawn from a report's rows and sum them up where they show more than one row as one.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any, NamedTuple

from etl.derived.metrics import Counts, add_counts, compute_rates
from etl.reports.backlog import AGES
from etl.reports.columns import SOURCE
from etl.reports.model import Definition, ReportResult
from etl.reports.page import cells, charts
from etl.reports.page.charts import NAME, OUTCOMES, Calendar, Chart, Row

MOST_LINES = 10
"""The number of rows in a chart; its table has more."""
MOST_TRENDS = 6
MOST_PERIODS = 160
"""The number of days or weeks in a trend: narrower columns could not be told apart."""
NO_NAME = "(no name)"
LONGEST_NAME = 44
CLASSES = ("new_failure", "regression", "failing", "always_failing")


class Figure(NamedTuple):
    """A chart with a heading and a remark on its right; both can be empty."""

    chart: Chart
    title: str = ""
    detail: str = ""


class Tile(NamedTuple):
    """A headline figure and its parts."""

    name: str
    value: str
    detail: str


class Mark(NamedTuple):
    """An entry of a chart's key; `mark` is a class of the style sheet."""

    mark: str
    letter: str
    words: str


def _draw_nothing(_rows: Sequence[Row]) -> list[Any]:
    return []


class Section(NamedTuple):
    """How a report is shown. `nothing` is said where it has no rows."""

    title: str
    sentence: str
    nothing: str = "Nothing in the archive answers this."
    figures: Callable[[Sequence[Row]], list[Figure]] = _draw_nothing
    key: tuple[Mark, ...] = ()
    tiles: Callable[[Sequence[Row]], list[Tile]] = _draw_nothing

    @property
    def is_drawn(self) -> bool:
        """Tell whether it shows more of a report than its table has."""
        return self.figures is not _draw_nothing or self.tiles is not _draw_nothing


def records(report: ReportResult) -> list[dict[str, Any]]:
    """Return a report's rows by the names of its columns, without the `source` of all of them."""
    hidden = {SOURCE.name}.difference(report.brief)
    places = [
        (column.name, place)
        for place, column in enumerate(report.columns)
        if column.name not in hidden
    ]
    return [{name: row[place] for name, place in places} for row in report.rows]


# --- charts from rows -----------------------------------------------------------------------


def _named(row: Row, *names: str) -> dict[str, Any]:
    """Return `row` with a name for charts: its account, if it has one, and some of its columns."""
    shown = [name for name in (SOURCE.name, *names) if name in row]
    parts = [cells.text(row[name] or NO_NAME, LONGEST_NAME) for name in shown]
    return {**row, NAME: cells.cut(" · ".join(parts), LONGEST_NAME)}


def _numbered(rows: Iterable[Row], *names: str) -> list[dict[str, Any]]:
    """Return rows with names for charts; those alike, of other environments, get a number."""
    times: Counter[str] = Counter()
    numbered = []
    for row in rows:
        named = _named(row, *names)
        times[named[NAME]] += 1
        number = times[named[NAME]]
        numbered.append(named if number == 1 else {**named, NAME: f"{named[NAME]} ({number})"})
    return numbered


def _counts(rows: Iterable[Row]) -> Counts:
    return add_counts(Counts(*[row[name] for name in Counts._fields]) for row in rows)


def _rated(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the sums of `rows`, and the rates of these sums."""
    found = list(rows)
    counts = _counts(found)
    unknown = sum(row["unknown"] for row in found)
    return {**counts._asdict(), "unknown": unknown, **compute_rates(counts)._asdict()}


def _overview(rows: Sequence[Row]) -> list[Figure]:
    known = [row for row in rows if row["pass_rate_low"] is not None]
    known.sort(key=lambda row: row["pass_rate"] or 0)
    shown = [_named(row, "application") for row in known[:MOST_LINES]]
    return [Figure(charts.intervals(shown), detail=_of(known))] if shown else []


def _tiles(rows: Sequence[Row]) -> list[Tile]:
    if not rows:
        return []
    summed = compute_rates(_counts(rows))
    flaky, judged = _sum(rows, "flaky_series"), _sum(rows, "judged_series")
    between = f"{cells.rate(summed.pass_rate_low)} to {cells.rate(summed.pass_rate_high)}"
    return [
        Tile("Runs", f"{_sum(rows, 'runs'):,}", f"of {len(rows):,} applications"),
        Tile("Pass rate", cells.rate(summed.pass_rate), f"{between} counting open and aborted"),
        Tile("Decided", cells.rate(summed.decided_share), f"{_counts(rows).decided:,} results"),
        Tile("Flaky tests", f"{flaky:,}", f"of {judged:,} with enough results"),
        Tile(
            "Waiting", f"{_sum(rows, 'open_tests'):,}", f"tests in {_sum(rows, 'open_runs'):,} runs"
        ),
    ]


def _sum(rows: Iterable[Row], name: str) -> int:
    return sum(row[name] for row in rows)


def _trends(day: str, step_days: int) -> Callable[[Sequence[Row]], list[Figure]]:
    """Return how trends are drawn: one for each of the applications with most results."""

    def figures(rows: Sequence[Row]) -> list[Figure]:
        if not rows:
            return []
        last = max(row[day] for row in rows)
        recent = [row for row in rows if (last - row[day]).days < step_days * MOST_PERIODS]
        calendar = Calendar(day, min(row[day] for row in recent), last, step_days)
        by_application: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in recent:
            by_application[row.get(SOURCE.name, ""), row["application"]].append(row)
        largest = sorted(by_application.items(), key=lambda item: -_sum(item[1], "tests"))
        return [
            _trend(_named(found[0], "application")[NAME], _by_day(found, day), calendar)
            for _, found in largest[:MOST_TRENDS]
        ]

    return figures


def _by_day(rows: Iterable[Row], day: str) -> list[Row]:
    """Return the rows of all plans added up by day, in their order."""
    by_day: defaultdict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        by_day[row[day]].append(row)
    return [{day: each, **_rated(by_day[each])} for each in sorted(by_day)]


def _trend(name: str, rows: Sequence[Row], calendar: Calendar) -> Figure:
    decided = [row for row in rows if row["pass_rate"] is not None]
    last = ""
    if decided:
        when = "on" if calendar.step_days == 1 else "in the week of"
        day = decided[-1][calendar.day]
        last = f"{cells.rate(decided[-1]['pass_rate'])} {when} {day:%-d %b %Y}"
    return Figure(charts.trend(rows, calendar), name, last)


def _strips(rows: Sequence[Row]) -> list[Figure]:
    shown = _numbered(rows[:MOST_LINES], "test", "application")
    return [Figure(charts.strips(shown), detail=_of(rows))] if shown else []


def _failures(rows: Sequence[Row]) -> list[Figure]:
    """Return a chart for each class that has tests."""
    figures = []
    for word in CLASSES:
        found = [row for row in rows if row["class"] == word]
        if found:
            shown = _numbered(found[:MOST_LINES], "test", "application")
            title = word.replace("_", " ").capitalize()
            figures.append(Figure(charts.strips(shown), title, _of(found)))
    return figures


def _of(rows: Sized) -> str:
    """Return how many of `rows` a chart shows, where that is not all."""
    return f"the first {MOST_LINES} of {len(rows):,}" if len(rows) > MOST_LINES else ""


def _ages(rows: Sequence[Row]) -> list[Figure]:
    ages = [{NAME: words, "tests": _sum(rows, name)} for name, words, _ in AGES]
    chart = charts.bars(
        ages, "tests", "unresolved tests, by the time since their run ended", "unresolved"
    )
    return [Figure(chart)] if rows else []


def _environments(rows: Sequence[Row]) -> list[Figure]:
    """Return how many runs each environment had, over all applications."""
    runs: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        runs[row["environment"]] += row["runs"] + row["shared"]
    largest = sorted(runs.items(), key=lambda item: (-item[1], item[0]))[:MOST_LINES]
    shown = [_named({"environment": name, "n": number}, "environment") for name, number in largest]
    return [Figure(charts.bars(shown, "n", "runs that ended"), detail=_of(runs))] if shown else []


def _durations(rows: Sequence[Row]) -> list[Figure]:
    shown = _numbered(rows[:MOST_LINES], "plan", "application")
    return [Figure(charts.ranges(shown), detail=_of(rows))] if shown else []


# --- explanations --------------------------------------------------------------------------

_WORDS = {
    "P": "passed",
    "F": "failed",
    "U": "unresolved: waits for a person",
    "A": "aborted",
    "N": "pending",
    "?": "another word",
}
_RESULTS = tuple(Mark(OUTCOMES[letter], letter, words) for letter, words in _WORDS.items())
_RATE = Mark("dot", "", "pass rate: share of passed in all that is decided")
_BAND = Mark(
    "band", "", "share of passed in all that ended, aborted too, if no open result passes or all do"
)
_INTERVAL = (_RATE, _BAND)

SECTIONS = {
    "overview": Section(
        "Overview",
        "How each application fares: how many of its test results passed, how sure that is while"
        " some wait for a person, how many tests flip, and how much is open.",
        "No run in this window is in the archive.",
        _overview,
        _INTERVAL,
        _tiles,
    ),
    "weekly": Section(
        "Week by week",
        "Whether things get better or worse from week to week. A chart for each application (the"
        f" {MOST_TRENDS} with most results), its plans added up. Above: the pass rate. Below: how"
        " many results it is made of; a rate of few results jumps.",
        "No run in this window is in the archive.",
        _trends("week_starts_on", 7),
        (*_INTERVAL, *_RESULTS[:4]),
    ),
    "trend": Section(
        "Day by day",
        f"The same day by day, for recent changes: the last {MOST_PERIODS} days at most.",
        "No run in this window is in the archive.",
        _trends("day", 1),
        (*_INTERVAL, *_RESULTS[:4]),
    ),
    "flaky": Section(
        "Flaky tests",
        "Tests that keep changing between passed and failed, the least steady first. They cost"
        " trust: mend them or take them out. Each row has a test's last results, the newest on"
        " the right.",
        "No test is flaky by these rules.",
        _strips,
        _RESULTS,
    ),
    "failures": Section(
        "Failing tests",
        "Tests whose last decided result is a failure. New failures and regressions passed the"
        " time before; those that always fail were given up on, or wait for a decision. The newest"
        " result is on the right.",
        "No test fails.",
        _failures,
        _RESULTS,
    ),
    "backlog": Section(
        "Waiting for a person",
        "Results that no one has accepted or rejected yet, by how long they have waited. Until"
        " then no pass rate is final.",
        "Nothing waits for a person.",
        _ages,
    ),
    "unresolved": Section(
        "Waiting longest",
        "The runs that wait for a person, the longest wait first.",
        "Nothing waits for a person.",
    ),
    "environments": Section(
        "Environments",
        "Which systems, browsers and devices were tested, and how long ago. The pass rate is that"
        " of runs in one environment alone: of the others the API does not tell whose result it"
        " was.",
        "No run that is over names an environment.",
        _environments,
    ),
    "durations": Section(
        "Slowest plans",
        "The plans whose runs take longest, and whether they became slower.",
        "No run that is over has a duration.",
        _durations,
        (
            Mark("dot", "", "p50: half of the runs took no longer"),
            Mark("tick", "", "p95: 95 % of the runs took no longer"),
        ),
    ),
    "resolution": Section(
        "Time to a decision",
        "How long unresolved tests waited until somebody decided. A change is seen at the next"
        " look only, so each time is told as its least and its most.",
        "No test that was unresolved has been decided.",
    ),
    "changes": Section(
        "Changes of status",
        "Changes of runs and tests after they were first archived, the newest change first.",
        "No status has changed.",
    ),
    "series": Section(
        "Tests and their last results",
        "The last results of each test, the least healthy first; the newest is on the right.",
        "No test has a result.",
    ),
    "statuses": Section(
        "Words for a status",
        "Each word that the API sent as the status of a run or a test, and how it is counted.",
        "No run is in the archive.",
    ),
    "health": Section(
        "Archive health",
        "Whether the archive itself is up to date: all numbers above are as good as this.",
        "No pass has measured it yet.",
    ),
}
PAGE = (
    "overview",
    "weekly",
    "trend",
    "flaky",
    "failures",
    "backlog",
    "unresolved",
    "environments",
    "durations",
    "health",
)
"""The reports of the whole page, in their order."""


def of(definition: Definition) -> Section:
    """Return how a report is shown; one of which nothing is said here as a table alone."""
    return SECTIONS.get(definition.name) or Section(definition.title, "")
