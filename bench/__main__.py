"""`make bench`: how fast the archiver is beside what one would use instead, as ratios.

Only ratios of one run carry over to other machines: all contenders take turns in it.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import compare, figures
from bench.compare import CONTENDERS, Bench
from bench.content import PROFILES
from bench.figures import Cell, Result
from bench.process import FailedError
from bench.states import DATABASES, states
from tests.postgres import roomy_folder

CONTENTS = ("cold", "unchanged", "changed")
RUNS = {"small": 5000, "medium": 1500, "large": 150}


def main() -> int:
    """Measure what was chosen, and print it."""
    given = _parser().parse_args()
    if "dlt" in given.contenders and not compare.DLT_PYTHON.exists():
        print("dlt is not there; run: make bench (or leave it out: --contenders)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="bench-", dir=roomy_folder()) as folder:
        try:
            results = list(_cells(given, Path(folder)))
        except FailedError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    if given.json:
        print(json.dumps({"cells": [result.as_json() for result in results]}, indent=2))
        return 0
    for table in (figures.ratio_table(results), figures.memory_table(results)):
        print(table.markdown() if given.markdown else table.text())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    for name, known in (
        ("profiles", tuple(PROFILES)),
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
            help=f"of {', '.join(known)} (default: all)",
        )
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each cell (default: 3)")
    parser.add_argument("--runs", type=int, help=f"in each cell (default: {RUNS})")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print all figures as JSON")
    shown.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    return parser


def _cells(given: argparse.Namespace, folder: Path) -> Iterator[Result]:
    for kind in given.databases:
        with states(kind, folder) as place:
            for profile in given.profiles:
                runs = given.runs or RUNS[profile]
                cells = [Cell(profile, content, kind, runs) for content in given.contents]
                yield from _of_one_profile(
                    Bench(place, folder, given.contenders, given.repeats), cells
                )


def _of_one_profile(bench: Bench, cells: Sequence[Cell]) -> Iterator[Result]:
    try:
        for cell in cells:
            yield bench.measure(cell)
    finally:
        bench.close()


if __name__ == "__main__":
    sys.exit(main())
