"""Lists of a world's runs, in each format that `result-archiver track --from` takes.

A user's CI keeps such lists of its runs, so the labels are those that a CI job knows.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import datetime
from enum import Enum

import msgspec

from etl.sandbox import dice
from etl.sandbox.runs import Run
from etl.sandbox.world import World

BRANCHES = ("main", "main", "main", "release/24.2", "feature/größe", "fix-basket")
RUNS_PER_COMMIT = 2


class Format(Enum):
    """A format of a run list; the value ends the name of such a file."""

    TXT = "txt"
    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"


def render(world: World, form: Format, at: datetime) -> Iterator[str]:
    """Yield the lines, each with its end, of the list of all runs that have started by `at`."""
    return _RENDER[form](_row(world, run) for run in world.runs(at))


Row = dict[str, str]


def _row(world: World, run: Run) -> Row:
    # Two runs in a row share a commit: only then can a test be called flaky beyond doubt.
    change = run.number // RUNS_PER_COMMIT
    return {
        "run_id": run.run_id,
        "read_token": world.read_token(run.run_id),
        "branch": dice.pick(BRANCHES, "branch", run.plan.plan_id, change),
        "build": str(1000 + run.index),
        "commit": dice.token(40, "commit", run.plan.plan_id, change),
    }


def _txt(rows: Iterable[Row]) -> Iterator[str]:
    yield "# The sandbox's runs, one id a line.\n"
    for row in rows:
        yield f"{row['run_id']}\n"


def _csv(rows: Iterable[Row]) -> Iterator[str]:
    yield _csv_line(("run_id", "read_token", "branch", "build", "commit"))
    for row in rows:
        yield _csv_line(row.values())


def _csv_line(cells: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _jsonl(rows: Iterable[Row]) -> Iterator[str]:
    for row in rows:
        yield f"{msgspec.json.encode(row).decode()}\n"


def _json(rows: Iterable[Row]) -> Iterator[str]:
    separator = "[\n"
    for line in _jsonl(rows):
        yield f"{separator}{line.rstrip()}"
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


_RENDER = {Format.TXT: _txt, Format.CSV: _csv, Format.JSON: _json, Format.JSONL: _jsonl}
