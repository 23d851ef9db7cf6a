"""All results of the tests of one name: a history for each series."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection

from etl.derived.metrics import UNKNOWN, WORDS
from etl.derived.outcome_reader import Variant
from etl.derived.plans import NamedTest, Roster
from etl.reports.model import ReportRequest
from etl.reports.selection import read_results, start_conditions
from etl.reports.spans import requested_span
from etl.reports.statuses import read_unknown_words


class Result(NamedTuple):
    """The letter of a test in a run, and its status as the API sent it."""

    started_at: datetime
    run_id: str
    letter: str
    status: str | None


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
    """Yield the history of each series whose test is called `test`, by its newest name.

    Where tests are identified by id, results under former names belong to it.
    """
    span = requested_span(request)
    for variant, runs in read_results(connection, request, *start_conditions(span)):
        wanted = _SeriesPlaces(test)
        found: defaultdict[str, list[Result]] = defaultdict(list)
        for run in runs:
            places = wanted.find(run.roster)
            is_unknown = UNKNOWN in {run.outcomes[place] for place in places}
            words = read_unknown_words(connection, request, run.run_id) if is_unknown else {}
            for place in reversed(places):
                letter = run.outcomes[place]
                word = WORDS.get(letter) or words.get(place + 1)
                result = Result(run.started_at, run.run_id, letter, word)
                found[run.roster.keys[place]].append(result)
        for key in sorted(found):
            yield History(variant, wanted.newest[key], found[key])


class _SeriesPlaces:
    """The places in rosters of the series whose test has a name, by its newest roster."""

    def __init__(self, test: str) -> None:
        self.newest: dict[str, NamedTest] = {}
        self._test = test
        self._places: dict[str, list[int]] = {}

    def find(self, roster: Roster) -> list[int]:
        """Return their places in a roster; the rosters have to come from the newest run on."""
        if roster.roster_id not in self._places:
            for key, named in zip(reversed(roster.keys), reversed(roster.tests), strict=True):
                self.newest.setdefault(key, named)
            self._places[roster.roster_id] = [
                place
                for place, key in enumerate(roster.keys)
                if (self.newest[key].name or "").strip() == self._test
            ]
        return self._places[roster.roster_id]
