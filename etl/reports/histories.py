"""All results of the tests of one name: a history for each series."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection

from etl.derived.outcome_reader import Variant
from etl.derived.plans import NamedTest
from etl.reports.model import ReportRequest
from etl.reports.selection import TestPlaces, read_runs, start_conditions
from etl.reports.spans import requested_span


class Result(NamedTuple):
    """The letter of a test in a run."""

    started_at: datetime
    run_id: str
    letter: str


class History(NamedTuple):
    """All results of a series, the newest first."""

    variant: Variant
    test: NamedTest
    results: list[Result]

    @property
    def strip(self) -> str:
        """The results as letters, the oldest first."""
        return "".join(result.letter for result in reversed(self.results))


def histories(connection: Connection, request: ReportRequest, test: str) -> Iterator[History]:
    """Yield the history of each series whose test is called `test`."""
    places = TestPlaces(test)
    for variant, runs in read_runs(connection, request, *start_conditions(requested_span(request))):
        found: defaultdict[str, list[Result]] = defaultdict(list)
        tests: dict[str, NamedTest] = {}
        for run in runs:
            for place in reversed(places.of(run.roster)):
                key = run.roster.keys[place]
                tests.setdefault(key, run.roster.tests[place])
                found[key].append(Result(run.started_at, run.run_id, run.outcomes[place]))
        for key in sorted(found):
            yield History(variant, tests[key], found[key])
