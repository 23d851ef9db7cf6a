"""`make bench-growth`: measure an archive of 10 million test rows.

The bench ingests the first and the last runs, and fills in those between by the archiver's own
functions. Then it ingests runs into that archive and into an empty one in turns.
"""

import argparse
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from bench import about, compare, content, fill
from bench.compare import WITHOUT_AGGREGATES, Task, run, serve_task
from bench.content import CHANGED_EVERY, NAMES, PROFILES, History, Offer
from bench.figures import ARCHIVER, LABELS, Figure, figure_table
from bench.process import FailedError, Sample, measure
from bench.states import DATABASES, State, States, states
from etl.answers.compression import decompress
from etl.db import database
from etl.reports.catalog import REPORTS

PROFILE = PROFILES["growth"]
PROBE = PROFILES["medium"]
FIRST_PROBE = 100_000_000
"""The number of the first run of the timed ingests into the grown archive."""
LEAST_INGESTED = 10
SAMPLES = 20
MOST_BYTES = {"sqlite": 600, "postgresql": 800}
REPORT_S = {"sqlite": 2, "postgresql": 1}
LAST_MONTH = timedelta(days=30)
PAGE = "page of all reports"
AGGREGATES_SHARE = 0.1
SHARE_REPEATS = 3
"""Factor on the repeats: two samples may differ by more than the tenth in question."""
COLD, UNCHANGED = 0.8, 0.95
"""Lower bounds for the rate into the grown archive, as a share of that into an empty one."""


class Grown:
    """The growing archive on one kind of database, and its measurements."""

    def __init__(self, place: States, folder: Path, kind: str, offer: Offer) -> None:
        self._offer = offer
        self._place = place
        self._folder = folder
        self._kind = kind
        self._label = LABELS[kind]
        self._runs = offer.runs
        self._state = place.new()

    def grow(self) -> Iterator[Figure]:
        """Ingest the first and the last runs, fill in those between, change every twentieth."""
        few = max(self._runs // 100, LEAST_INGESTED)
        between = self._runs - 2 * few
        for name, first in (("first", 0), ("last", self._runs - few)):
            if first:
                began = time.perf_counter()
                self._fill(self._offer._replace(runs=between, first=few))
                elapsed_s = time.perf_counter() - began
                yield Figure(f"{self._label}, filled in bulk", between / elapsed_s, "runs/s")
            with self._serve_task(self._offer._replace(runs=few, first=first)) as task:
                sample = run(ARCHIVER, task, self._state)
            yield Figure(
                f"{self._label}, the {name} {few:,} runs", few / sample.elapsed_s, "runs/s"
            )
            yield Figure(f"{self._label}, the {name} {few:,} runs: peak", sample.peak_mib, "MiB")
        times = self._runs // CHANGED_EVERY
        changed = self._offer._replace(runs=times, content="changed", every=CHANGED_EVERY)
        with self._serve_task(changed) as task:
            sample = run(ARCHIVER, task, self._state, is_again=True)
        yield Figure(f"{self._label}, changed runs", times / sample.elapsed_s, "runs/s")
        self._check(self._runs)

    def _fill(self, offer: Offer) -> None:
        engine = database.connect(self._state.url)
        fill.fill(engine, offer)
        engine.dispose()

    @contextmanager
    def _serve_task(self, offer: Offer) -> Iterator[Task]:
        with serve_task(offer, self._folder) as task:
            yield task._replace(totals=None)

    def _check(self, runs: int) -> None:
        """Compare the number of rows, and some payloads, with the API.

        Raises:
            FailedError: they differ.
        """
        found = self._state.totals()
        wanted = (runs, runs * PROFILE.environments, runs * PROFILE.tests)
        if found[:3] != wanted:
            raise FailedError(f"the archive has {found} instead of {wanted}")
        offer = self._offer._replace(content="changed")
        for index in range(0, runs, max(runs // SAMPLES, 1)):
            if self._newest_body(offer.run_ids()[index]) != offer.answer(index):
                raise FailedError(f"the payload of run number {index} differs from the API")

    def _newest_body(self, run_id: str) -> bytes:
        query = "SELECT body, encoding FROM payloads WHERE run_id = '{}' ORDER BY revision DESC"
        [(body, encoding), *_] = _rows(self._state, query.format(run_id))
        return decompress(bytes(body), encoding)

    def size(self) -> Iterator[Figure]:
        """Yield the size of tables and indexes without payloads, in bytes per test row."""
        tests = self._state.totals().tests
        sizes = dict(_rows(self._state, SIZES[self._kind]))
        total = sum(sizes.values())
        yield Figure(
            f"{self._label}, all but payloads", total / tests, "bytes per test row",
            at_most=MOST_BYTES[self._kind],
        )  # fmt: skip
        for name, size in sorted(sizes.items(), key=lambda pair: -pair[1]):
            if size > total / 100:
                yield Figure(f"{self._label}, {name}", size / tests, "bytes per test row")

    def probe(self, runs: int, repeats: int) -> Iterator[Figure]:
        """Ingest the same runs into an empty archive and into this one, in turns."""
        samples: dict[tuple[str, bool], list[Sample]] = {}
        for repeat in range(repeats):
            fresh = self._place.new()
            self._prepare(fresh)
            offer = self._probe(runs, repeat)
            with self._serve_task(offer) as task:
                for where, state in (("empty", fresh), ("full", self._state)):
                    for is_again in (False, True):
                        sample = run(ARCHIVER, task, state, is_again=is_again)
                        samples.setdefault((where, is_again), []).append(sample)
            self._place.drop(fresh)
        for is_again, name, at_least in ((False, "new", COLD), (True, "unchanged", UNCHANGED)):
            empty, full = (samples[where, is_again] for where in ("empty", "full"))
            empty_s, full_s = (median(map(_elapsed_s, each)) for each in (empty, full))
            empty_cpu_s, full_cpu_s = (median(map(_cpu_s, each)) for each in (empty, full))
            label = f"{self._label}, {name} medium runs"
            yield Figure(f"{label} when empty", runs / empty_s, "runs/s")
            yield Figure(f"{label} when full", runs / full_s, "runs/s")
            yield Figure(f"{label}", empty_s / full_s, "of the rate when empty", at_least)
            yield Figure(f"{label}, CPU alone", empty_cpu_s / full_cpu_s, "of the rate when empty")

    def _probe(self, runs: int, number: int) -> Offer:
        first = FIRST_PROBE + number * runs
        return self._offer._replace(profile=PROBE, runs=runs, first=first)

    def _prepare(self, state: State) -> None:
        engine = database.connect(state.url)
        database.prepare(engine)
        engine.dispose()

    def views(self) -> Iterator[Figure]:
        """Yield the time to count the rows of each view."""
        if self._kind == "postgresql":  # autovacuum would do so within minutes
            _execute(self._state, "VACUUM (ANALYZE)")
        schema = "reporting." if self._kind == "postgresql" else ""
        for name in view_names():
            began = time.perf_counter()
            [(rows,)] = _rows(self._state, f"SELECT count(*) FROM {schema}{name}")
            elapsed_s = time.perf_counter() - began
            yield Figure(f"{self._label}, view {name}: {rows:,} rows", elapsed_s, "s")

    def questions(self, repeats: int) -> Iterator[Figure]:
        """Yield the time of each answer as a whole process, with its number of lines."""
        environment = compare.environment_of(self._state)
        for name, arguments in questions(self._offer.history.ends_at - LAST_MONTH).items():
            command = [sys.executable, "-m", "etl", *arguments]
            samples = [measure(command, environment, self._state.folder) for _ in range(repeats)]
            lines = (self._state.folder / "output").read_text().count("\n")
            label = f"{self._label}, {name}: {lines:,} lines"
            elapsed_s, cpu_s = median(map(_elapsed_s, samples)), median(map(_cpu_s, samples))
            at_most = None if name == PAGE else REPORT_S[self._kind]
            yield Figure(label, elapsed_s, "s", at_most=at_most)
            yield Figure(f"{self._label}, {name}: CPU", cpu_s, "s")

    def aggregates(self, runs: int, repeats: int) -> Iterator[Figure]:
        """Yield the share of an ingest that derived tables take.

        This leaves them incomplete, so it has to come last.
        """
        samples: dict[str, list[Sample]] = {ARCHIVER: [], WITHOUT_AGGREGATES: []}
        contenders = [*samples] * repeats
        for number, contender in enumerate(contenders, repeats):
            offer = self._probe(runs, number)
            with self._serve_task(offer) as task:
                samples[contender].append(run(contender, task, self._state))
        for unit, of in (("of the time", _elapsed_s), ("of the CPU", _cpu_s)):
            less, all_of_it = (
                median(map(of, samples[name])) for name in (WITHOUT_AGGREGATES, ARCHIVER)
            )
            at_most = AGGREGATES_SHARE
            name = f"{self._label}, derived tables: share of an ingest"
            yield Figure(name, 1 - less / all_of_it, unit, at_most=at_most)


SIZES = {
    "sqlite": (
        "SELECT name, sum(pgsize) FROM dbstat WHERE name NOT LIKE '%payloads%' GROUP BY name"
    ),
    "postgresql": (
        "SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relkind = 'r'"
        " AND relnamespace = 'public'::regnamespace AND relname <> 'payloads'"
    ),
}
"""PostgreSQL: each table with its indexes. SQLite: each table and each index."""


def view_names() -> list[str]:
    """Return the views that BI tools read."""
    return sorted(path.stem for path in (database.migrations_folder() / "views").glob("*.sql"))


def questions(then: datetime) -> dict[str, Sequence[str]]:
    """Return commands that people use: reports now and as of `then`, and questions about runs."""
    before, after = content.run_id(0), content.run_id(content.PLANS)
    as_of = ("--as-of", then.date().isoformat(), "--format", "csv")
    return {
        **{f"report {name}": ("report", name, "--format", "csv") for name in REPORTS},
        **{f"{name} as of last month": ("report", name, *as_of) for name in REPORTS},
        PAGE: ("report", "--format", "html"),
        "compare": ("compare", before, after),
        "show": ("show", before),
        "gate": ("gate", before, "--min-pass-rate", "0"),
    }


def _elapsed_s(sample: Sample) -> float:
    return sample.elapsed_s


def _cpu_s(sample: Sample) -> float:
    return sample.cpu_s


def _connect(state: State) -> Any:
    if state.url.startswith("sqlite"):
        return sqlite3.connect(state.url.removeprefix("sqlite:///"))
    return psycopg.connect(state.url.replace("+psycopg", ""), autocommit=True)


def _execute(state: State, statement: str) -> None:
    with closing(_connect(state)) as connection:
        connection.execute(statement)


def _rows(state: State, query: str) -> list[Any]:
    with closing(_connect(state)) as connection:
        found: list[Any] = connection.execute(query).fetchall()
        return found


def main() -> int:
    """Grow the archive on each kind of database, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--test-rows", type=int, default=10_000_000)
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES)
    parser.add_argument(
        "--probe-runs", type=int, default=3000, help="runs of each ingest at the end"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="rounds of each measurement (default: 3)"
    )
    parser.add_argument("--names", choices=NAMES, default="mixed", help="of plans and tests")
    parser.add_argument("--folder", type=Path, help="folder that keeps SQLite's archive")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print all figures as JSON")
    shown.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args()
    figures: list[Figure] = []
    try:
        for kind in given.databases:
            figures.extend(_figures(given, kind))
    except FailedError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        _show(given, figures)
    return 0


def _show(given: argparse.Namespace, figures: list[Figure]) -> None:
    versions = about.versions(compare.DLT_PYTHON)
    if given.json:
        alone = [figure._asdict() for figure in figures]
        print(json.dumps({"versions": versions, "figures": alone}, indent=2))
        return
    table = figure_table(f"An archive of {given.test_rows:,} test rows", figures)
    print(table.markdown() if given.markdown else table.text())
    print(", ".join(f"{name} {version}" for name, version in versions.items()))


def _figures(given: argparse.Namespace, kind: str) -> Iterator[Figure]:
    with _folder(given.folder) as folder, states(kind, folder, folder) as place:
        grown = Grown(place, folder, kind, _make_offer(given))
        for figure in chain(
            grown.grow(),
            grown.size(),
            grown.probe(given.probe_runs, given.repeats),
            grown.views(),
            grown.questions(given.repeats),
            grown.aggregates(given.probe_runs, SHARE_REPEATS * given.repeats),
        ):
            print(f"{figure.name}: {figure.shown} {figure.unit}", file=sys.stderr)
            yield figure


def _make_offer(given: argparse.Namespace) -> Offer:
    """Return the archive's runs. Reports look back from today.

    Runs that end at midnight are no longer watched.
    """
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    runs = given.test_rows // PROFILE.tests
    return Offer(PROFILE, runs, history=History(today, runs), names=given.names)


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """Yield a folder that PostgreSQL's own user may enter: `kept`, or a temporary one."""
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.absolute()
    else:
        with tempfile.TemporaryDirectory(prefix="growth-") as name:
            Path(name).chmod(0o755)
            yield Path(name)


if __name__ == "__main__":
    sys.exit(main())
