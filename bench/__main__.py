"""`make bench`: measure the speed of the archiver beside its alternatives, as ratios.

Only ratios of one session carry over to other machines: all contenders take turns in it.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import NamedTuple

from bench import about, compare, extras, figures
from bench.compare import CONTENDERS, Bench
from bench.content import NAMES
from bench.figures import Cell, Figure, Result
from bench.process import FailedError
from bench.states import DATABASES, States, states
from bench.workers import workers
from tests.support.postgres import roomy_folder

PARTS = ("cells", "latency", "memory", "start", "workers")
CONTENTS = ("cold", "unchanged", "changed")
RUNS = {"small": 20_000, "medium": 6000, "large": 600}
"""Enough runs for some seconds, so that the start has a small share."""
DEFAULT_RUNS = ", ".join(f"{runs} {profile}" for profile, runs in RUNS.items())
CONNECTIONS = (8, 64)
DISK = Path("/tmp")


class Measured(NamedTuple):
    """The results of one call."""

    cells: list[Result]
    alone: list[Figure]


def main() -> int:
    """Measure the chosen parts and print them; after a failure, print the results up to it."""
    given = _parser().parse_args()
    if "dlt" in given.contenders and not compare.DLT_PYTHON.exists():
        missing = "dlt is not installed: run make bench, or omit it from --contenders"
        print(f"bench: {missing}", file=sys.stderr)
        return 2
    measured = Measured([], [])
    try:
        _measure(given, measured)
    except FailedError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        _show(given, measured)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    for name, known in (
        ("parts", PARTS),
        ("profiles", tuple(RUNS)),
        ("names", NAMES),
        ("contents", CONTENTS),
        ("databases", DATABASES),
        ("contenders", CONTENDERS),
    ):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            choices=known,
            default=known,
            metavar="NAME",
            help=f"any of {', '.join(known)} (default: all)",
        )
    parser.add_argument(
        "--disk",
        action="store_true",
        help="databases on the disk of /tmp, with durable commits (default: in memory)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds per cell (default: 3)")
    parser.add_argument("--runs", type=int, help=f"runs per cell (default: {DEFAULT_RUNS})")
    parser.add_argument("--save", type=Path, metavar="FILE", help="also write the JSON to FILE")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print all figures as JSON")
    shown.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    return parser


def _measure(given: argparse.Namespace, measured: Measured) -> None:
    parent, server_folder = (DISK, DISK) if given.disk else (roomy_folder(), None)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as name:
        folder = Path(name)
        for kind in given.databases:
            with states(kind, folder, server_folder) as place:
                if "cells" in given.parts:
                    measured.cells.extend(_cells(given, place, folder, kind))
                measured.alone.extend(_alone(given, place, folder, kind))


def _cells(given: argparse.Namespace, place: States, folder: Path, kind: str) -> Iterator[Result]:
    for profile, names in product(given.profiles, given.names):
        with closing(Bench(place, folder, given.contenders, given.repeats)) as bench:
            for content in given.contents:
                runs = given.runs or RUNS[profile]
                yield bench.measure(Cell(profile, content, kind, runs, names))


def _alone(given: argparse.Namespace, place: States, folder: Path, kind: str) -> Iterator[Figure]:
    parts = given.parts
    if "latency" in parts and kind == "sqlite":  # the kind of database does not matter here
        for connections in CONNECTIONS:
            yield from extras.latency(place, folder, connections)
    if "memory" in parts:
        yield from extras.memory(place, folder, kind)
    if "start" in parts:
        yield from extras.start(place, folder, kind)
    if "workers" in parts:
        yield from workers(place, folder, kind, given.repeats)


def _show(given: argparse.Namespace, measured: Measured) -> None:
    versions = about.versions(compare.DLT_PYTHON)
    as_json = json.dumps(
        {
            "versions": versions,
            "cells": [result.as_json() for result in measured.cells],
            "alone": [figure._asdict() for figure in measured.alone],
        },
        indent=2,
    )
    if given.save:
        given.save.write_text(as_json)
    if given.json:
        print(as_json)
        return
    tables = []
    if measured.cells:
        makers = (figures.ratio_table, figures.cpu_table, figures.memory_table)
        tables += [make(measured.cells) for make in makers]
    if measured.alone:
        tables.append(figures.figure_table("The archiver alone", measured.alone))
    for table in tables:
        print(table.markdown() if given.markdown else table.text())
    print(", ".join(f"{name} {version}" for name, version in versions.items()))


if __name__ == "__main__":
    sys.exit(main())
