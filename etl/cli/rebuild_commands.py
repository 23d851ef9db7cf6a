"""`verify` and `replay`: the tables against the payloads.

Differences are printed at once, and not kept: there can be as many as there are rows.
"""

import sys
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from etl import display
from etl.cli import dask_option, options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from sqlalchemy import Engine

    from etl.archive.differences import BatchFindings, Difference
    from etl.archive.processes import Spread
    from etl.archive.rejects import ReadableReject
    from etl.cli.session import Session
    from etl.config.settings import Reporting
    from etl.db.opening import Archive

    Tell = Callable[[BatchFindings], None]

LISTED = 1_000
"""How many differences of a kind are listed as JSON; all are counted."""


class Helpers(NamedTuple):
    """The processes that share the work: a number on this machine, or those of a Dask cluster."""

    workers: int | None
    dask: str | None


class _Differences:
    """Differences of one kind: all are counted, the first are kept."""

    def __init__(self) -> None:
        self.count = 0
        self.runs = 0
        self._first: list[Difference] = []

    def add(self, differences: "list[Difference]") -> None:
        """Add the differences of a batch, which has all those of its runs."""
        self.count += len(differences)
        self.runs += len({difference.run_id for difference in differences})
        self._first += differences[: LISTED - len(self._first)]

    def as_json(self) -> dict[str, Any]:
        """Return their true number, and the first of them."""
        return {"count": self.count, "first": [each._asdict() for each in self._first]}


class _Totals:
    """The results of all batches."""

    def __init__(self) -> None:
        self.runs = 0
        self.damage = _Differences()
        self.differing = _Differences()
        self.mismatches = _Differences()

    def add(self, batch: "BatchFindings") -> None:
        """Add the results of a batch."""
        self.runs += batch.runs
        self.damage.add(batch.damage)
        self.differing.add(batch.differing)
        self.mismatches.add(batch.mismatches)


@click.command(epilog="Example: result-archiver verify")
@options.workers
@dask_option.dask
@options.as_json
@options.pass_session
def verify(session: "Session", *, workers: int | None, dask: str | None, as_json: bool) -> int:
    """Check tables and history against the payloads, row by row.

    Each row that differs is named; the exit code is 1 then.
    """
    from etl.db.archive_settings import read_settings

    with session.open_to_read() as archive:
        with archive.reading() as connection:
            derived_with = read_settings(connection).reporting
        tell = _print_nothing if as_json else _print_all
        found = _verify_all(archive, derived_with, tell, Helpers(workers, dask))
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


@click.command(epilog="Example: result-archiver replay --dry-run")
@click.option("--dry-run", is_flag=True, help="Only list the rows that would change, and why.")
@options.workers
@dask_option.dask
@options.as_json
@options.pass_session
def replay(
    session: "Session", *, dry_run: bool, workers: int | None, dask: str | None, as_json: bool
) -> int:
    """Rebuild all derived tables from the payloads, offline.

    Answers in `rejects` that can be read by now are archived first. It needs no key. Damaged
    payloads are left as they were; the exit code is 1 then.
    """
    from etl.archive import identity
    from etl.archive.rejects import find_readable, replay_rejects
    from etl.archive.replay import replay_archive
    from etl.db import database
    from etl.db.archive_settings import begin_rebuild

    tell = _print_nothing if as_json else _print_wrong
    reporting, helpers = session.config.reporting, Helpers(workers, dask)
    if dry_run:
        with session.open_to_read() as archive:
            readable = find_readable(archive.engine, reporting.zone)
            accepted = _count_rejects(readable, "would be archived", tell)
            found = _verify_all(archive, reporting, tell, helpers)
        _print_changes(found, accepted, "would be ", as_json=as_json)
        return 0
    with session.open_to_rebuild() as archive:
        begin_rebuild(archive.engine, reporting)
        identity.measure_damaged(archive.engine, session.now, reporting.zone)
        readable = replay_rejects(archive.engine, session.config, session.now)
        accepted = _count_rejects(readable, "archived", tell)
        with _choose_spread(archive, helpers, database.connect) as spread:
            batches = replay_archive(archive.engine, reporting, spread=spread)
            found = _work_through(archive, batches, tell)
    _print_changes(found, accepted, "", as_json=as_json)
    return 1 if found.damage.count else 0


def _count_rejects(
    readable: "Iterable[ReadableReject]", outcome: str, tell: "Tell"
) -> _Differences:
    """Print each reject as it comes; count them."""
    from etl.archive.differences import BatchFindings

    accepted = _Differences()
    for each in readable:
        listed = [each.describe(outcome)]
        accepted.add(listed)
        tell(BatchFindings(0, [], listed, []))
    return accepted


def _choose_spread(
    archive: "Archive", helpers: Helpers, connect: "Callable[[str], Engine]"
) -> "AbstractContextManager[Spread]":
    if helpers.dask is not None:
        from etl.ingest.pass_workers import read_newest_mark

        cluster = dask_option.connect_to_dask(helpers.dask)
        with archive.reading() as connection:
            mark = read_newest_mark(connection)
        return nullcontext(cluster.spread(connect, mark, helpers.workers))
    from etl.archive.processes import choose_spread

    return choose_spread(archive.engine, helpers.workers or 1, connect)


def _verify_all(
    archive: "Archive", derived_with: "Reporting", tell: "Tell", helpers: Helpers
) -> _Totals:
    from etl.archive.verify import verify_archive
    from etl.db import database

    with _choose_spread(archive, helpers, database.connect_to_read) as spread:
        batches = verify_archive(archive.engine, derived_with, spread=spread)
        return _work_through(archive, batches, tell)


def _work_through(archive: "Archive", batches: "Iterable[BatchFindings]", tell: "Tell") -> _Totals:
    """Print each batch as it comes, with progress; add them up."""
    from sqlalchemy import func, select

    from etl.db.schema import payloads

    with archive.reading() as connection:
        query = select(func.count(payloads.c.run_id.distinct()))
        total = connection.scalar(query) or 0
    found = _Totals()
    stdout = sys.stdout  # which a progress bar would lead to stderr
    with display.progress("checking") as progress, redirect_stdout(stdout):
        for batch in batches:
            found.add(batch)
            tell(batch)
            progress(found.runs, total)
    return found


def _print_nothing(_batch: "BatchFindings") -> None:
    """Print no batch: the totals follow as JSON."""


def _print_wrong(batch: "BatchFindings") -> None:
    for difference in [*batch.damage, *batch.differing]:
        display.say(display.safe(difference))


def _print_all(batch: "BatchFindings") -> None:
    _print_wrong(batch)
    for mismatch in batch.mismatches:
        display.say(f"the API's own: {display.safe(mismatch)}")


def _advise(found: _Totals) -> None:
    if found.differing.count:
        display.say(f"`result-archiver replay` mends {found.differing.count} of them")
    if found.damage.count:
        display.say(f"{found.damage.count} of them no replay mends; a backup may have them whole")


def _print_changes(found: _Totals, accepted: _Differences, would_be: str, *, as_json: bool) -> None:
    if as_json:
        display.as_json(
            {
                "runs": found.runs,
                "changes": found.differing.as_json(),
                "damage": found.damage.as_json(),
                "rejects": accepted.as_json(),
            }
        )
        return
    display.say(
        f"{found.runs} runs read: {found.differing.count} rows in {found.differing.runs} runs"
        f" {would_be}changed; {found.damage.count} damaged;"
        f" {accepted.count} rejects {would_be}archived"
    )
