"""`verify` and `replay`: what the archive says against what the API said.

What is found is told at once, and not kept: there can be as much of it as there are rows.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from etl import display
from etl.archive.differences import BatchFindings, Difference
from etl.archive.replay import replay_archive
from etl.archive.verify import verify_archive
from etl.cli.session import Session, open_session
from etl.db import database
from etl.db.schema import payloads

LISTED = 1_000
"""How many differences of a kind are listed as JSON; all are counted."""


class _Kind:
    """Differences of one kind: all are counted, the first are kept."""

    def __init__(self) -> None:
        self.count = 0
        self.runs = 0
        self._first: list[Difference] = []

    def add(self, differences: list[Difference]) -> None:
        """Take in the differences of a batch, which has all those of its runs."""
        self.count += len(differences)
        self.runs += len({difference.run_id for difference in differences})
        self._first += differences[: LISTED - len(self._first)]

    def as_json(self) -> dict[str, Any]:
        """Return their true number, and the first of them."""
        return {"count": self.count, "first": [each._asdict() for each in self._first]}


class _Found:
    """What was found in all batches."""

    def __init__(self) -> None:
        self.runs = 0
        self.damage = _Kind()
        self.differing = _Kind()
        self.mismatches = _Kind()

    def add(self, batch: BatchFindings) -> None:
        """Take in what was found in a batch."""
        self.runs += batch.runs
        self.damage.add(batch.damage)
        self.differing.add(batch.differing)
        self.mismatches.add(batch.mismatches)


def verify(path: Path | None, *, as_json: bool) -> int:
    """Check all runs; 1 if anything is not as it should be."""
    session = _archive(path)
    zone, rules = session.config.reporting_zone, session.config.rules
    batches = verify_archive(session.engine, zone, rules)
    found = _work_through(session, batches, _say_nothing if as_json else _say_all)
    wrong = found.damage.count + found.differing.count
    if as_json:
        display.as_json(
            {
                "runs": found.runs,
                "damage": found.damage.as_json(),
                "differing": found.differing.as_json(),
                "mismatches_of_the_api": found.mismatches.as_json(),
            }
        )
    else:
        display.say(
            f"{found.runs} runs checked: {wrong} rows wrong,"
            f" {found.mismatches.count} mismatches in the API's own counters"
        )
        _advise(found)
    return 1 if wrong else 0


def preview(path: Path | None, *, as_json: bool) -> int:
    """Say what `replay` would change."""
    session = _archive(path)
    zone, rules = session.config.reporting_zone, session.config.rules
    batches = verify_archive(session.engine, zone, rules)
    found = _work_through(session, batches, _say_nothing if as_json else _say_wrong)
    _sum_up(found, "would be changed", as_json=as_json)
    return 0


def replay(path: Path | None, *, as_json: bool) -> int:
    """Rebuild what differs; 1 if there is damage, which is left as it was."""
    session = _archive(path)
    zone, rules = session.config.reporting_zone, session.config.rules
    batches = replay_archive(session.engine, zone, rules)
    found = _work_through(session, batches, _say_nothing if as_json else _say_wrong)
    _sum_up(found, "changed", as_json=as_json)
    return 1 if found.damage.count else 0


def _archive(path: Path | None) -> Session:
    session = open_session(path)
    database.require_archive(session.engine)
    return session


def _work_through(
    session: Session, batches: Iterable[BatchFindings], tell: Callable[[BatchFindings], None]
) -> _Found:
    """Tell of each batch as it comes, with progress; add them up."""
    with database.reading(session.engine) as connection:
        query = select(func.count(payloads.c.run_id.distinct()))
        total = connection.scalar(query) or 0
    found = _Found()
    stdout = sys.stdout  # which a progress bar would lead to stderr
    with display.progress("checking") as progress, redirect_stdout(stdout):
        for batch in batches:
            found.add(batch)
            tell(batch)
            progress(found.runs, total)
    return found


def _say_nothing(_batch: BatchFindings) -> None:
    """Leave it to the summing up."""


def _say_wrong(batch: BatchFindings) -> None:
    for difference in [*batch.damage, *batch.differing]:
        display.say(display.safe(difference))


def _say_all(batch: BatchFindings) -> None:
    _say_wrong(batch)
    for mismatch in batch.mismatches:
        display.say(f"the API's own: {display.safe(mismatch)}")


def _advise(found: _Found) -> None:
    if found.differing.count:
        display.say(f"`result-archiver replay` mends {found.differing.count} of them")
    if found.damage.count:
        display.say(f"{found.damage.count} of them no replay mends; a backup may have them whole")


def _sum_up(found: _Found, verb: str, *, as_json: bool) -> None:
    if as_json:
        display.as_json(
            {
                "runs": found.runs,
                "changes": found.differing.as_json(),
                "damage": found.damage.as_json(),
            }
        )
        return
    display.say(
        f"{found.runs} runs read: {found.differing.count} rows in {found.differing.runs} runs"
        f" {verb}; {found.damage.count} damaged"
    )
