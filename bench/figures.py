"""Compute medians, ratios and tables from samples. Pure."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from bench.process import Sample

ARCHIVER = "archiver"
LABELS = {"sqlite": "SQLite", "postgresql": "PG"}

MOST_MIB = {"small": 80.0, "medium": 80.0, "large": 110.0}
_SMALL_AGAIN = {"bare": (0.85, 0.85), "threads": (1.8, 1.8), "dlt": (3, 2.5)}
TARGETS: Mapping[tuple[str, str], Mapping[str, tuple[float, float]]] = {
    ("small", "cold"): {"threads": (2.5, 2.0), "dlt": (3, 2.5)},
    ("small", "unchanged"): _SMALL_AGAIN,
    ("small", "changed"): _SMALL_AGAIN,
    ("medium", "cold"): {"threads": (2.0, 1.8), "dlt": (4.5, 4)},
    ("medium", "unchanged"): {"bare": (0.85, 0.85), "threads": (1.8, 2.3), "dlt": (7, 6)},
    ("large", "cold"): {"limit": (0.8, 0.8), "threads": (1.2, 1.4), "dlt": (6, 4)},
    ("large", "unchanged"): {"bare": (0.8, 0.8), "threads": (2.5, 4), "dlt": (15, 11)},
}
"""Targets for the speed as a multiple of each contender's, on SQLite and PostgreSQL."""
UNIQUE_THREADS = {"small": (1.5, 1.2), "medium": (1.2, 1.1), "large": (1.0, 1.1)}
"""The targets beside `threads` for new runs of which each has names of its own."""


class Cell(NamedTuple):
    """A workload: `runs` runs of a profile that are all new, unchanged, or changed in part."""

    profile: str
    content: str
    database: str
    runs: int
    names: str = "recurring"


class Result(NamedTuple):
    """A cell with the samples of each contender, in their order in time."""

    cell: Cell
    samples: Mapping[str, Sequence[Sample]]

    def elapsed_s(self, contender: str) -> float:
        """Return the median of the wall clock times."""
        return median(sample.elapsed_s for sample in self.samples[contender])

    def cpu_s(self, contender: str) -> float:
        """Return the median of the CPU times."""
        return median(sample.cpu_s for sample in self.samples[contender])

    def peak_mib(self, contender: str) -> float:
        """Return the median of the peaks."""
        return median(sample.peak_mib for sample in self.samples[contender])

    def ratio(self, contender: str) -> float | None:
        """Return the archiver's speed as a multiple of the contender's, if both were measured."""
        if contender not in self.samples or ARCHIVER not in self.samples:
            return None
        return self.elapsed_s(contender) / self.elapsed_s(ARCHIVER)

    def target(self, contender: str) -> float | None:
        """Return the lower bound of the ratio, if it has one."""
        cell = self.cell
        targets = TARGETS.get((cell.profile, cell.content), {}).get(contender)
        if (cell.names, cell.content, contender) == ("unique", "cold", "threads"):
            targets = UNIQUE_THREADS[cell.profile]
        return targets[self.cell.database == "postgresql"] if targets else None

    def as_json(self) -> dict[str, Any]:
        """Return the cell, and for each contender the medians, the ratio and its target."""
        contenders = {
            name: {
                "elapsed_s": round(self.elapsed_s(name), 4),
                "cpu_s": round(self.cpu_s(name), 4),
                "runs_per_s": round(self.cell.runs / self.elapsed_s(name), 1),
                "peak_mib": round(self.peak_mib(name), 1),
                "archiver_is_faster": _rounded(self.ratio(name)),
                "target": self.target(name),
                "samples_s": [round(sample.elapsed_s, 4) for sample in samples],
            }
            for name, samples in self.samples.items()
        }
        return {**self.cell._asdict(), "contenders": contenders}


class Figure(NamedTuple):
    """One measured number with its unit and, if it has one, its bound."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def shown(self) -> str:
        """The value with its bound, and a mark if it is out of bounds."""
        if self.at_least is not None:
            return format_with_target(self.value, self.at_least)
        return format_with_limit(self.value, self.at_most)


class Table(NamedTuple):
    """A heading, column names and rows; the first column is text, the others are numbers."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return the table as aligned text."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        aligned = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in lines
        ]
        return "\n".join([self.heading, "", *aligned, ""])

    def markdown(self) -> str:
        """Return the table as Markdown."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, rule, *self.rows)]
        return "\n".join([self.heading, "", *lines, ""])


def ratio_table(results: Sequence[Result]) -> Table:
    """Return one row per cell: the archiver's rate, and its ratio to each contender's."""
    others = _measured(results, ("bare", "script", "threads", "dlt", "limit"))
    rows = [
        [
            _name(result.cell),
            _rate(result),
            *(format_with_target(result.ratio(name), result.target(name)) for name in others),
        ]
        for result in results
    ]
    heading = "Speed as a multiple of each contender's / target (! if missed):"
    return Table(heading, ["runs", "runs/s", *others], rows)


def cpu_table(results: Sequence[Result]) -> Table:
    """Return the ratios of CPU time, which other load on the machine hardly changes."""
    others = _measured(results, ("bare", "script", "threads", "dlt"))
    rows = [
        [
            _name(result.cell),
            *(
                f"{result.cpu_s(name) / result.cpu_s(ARCHIVER):.2f}"
                if {name, ARCHIVER} <= result.samples.keys()
                else ""
                for name in others
            ),
        ]
        for result in results
    ]
    return Table("The same by CPU time (without a database server's):", ["runs", *others], rows)


def memory_table(results: Sequence[Result]) -> Table:
    """Return one row per cell: the peak memory of each contender."""
    names = _measured(results, (ARCHIVER, "bare", "script", "threads", "dlt"))
    rows = [
        [
            _name(result.cell),
            *(_peak(result, name) if name in result.samples else "" for name in names),
        ]
        for result in results
    ]
    return Table("Peak memory in MiB / limit (! if exceeded):", ["runs", *names], rows)


def _measured(results: Sequence[Result], names: Sequence[str]) -> list[str]:
    return [name for name in names if any(name in result.samples for result in results)]


def figure_table(heading: str, figures: Sequence[Figure]) -> Table:
    """Return one row per figure."""
    rows = [[figure.name, figure.shown, figure.unit] for figure in figures]
    return Table(f"{heading} / bound (! if out of bounds):", ["", "", "unit"], rows)


def format_with_target(value: float | None, at_least: float | None) -> str:
    """Return a value with its target, and a mark if it misses the target."""
    if value is None:
        return ""
    if at_least is None:
        return f"{value:.2f}"
    return f"{value:.2f}/{at_least:g}{'!' if value < at_least else ''}"


def format_with_limit(value: float, at_most: float | None) -> str:
    """Return a value with its limit, and a mark if it exceeds the limit."""
    if at_most is None:
        return _short(value)
    return f"{_short(value)}/{at_most:g}{'!' if value > at_most else ''}"


def _peak(result: Result, name: str) -> str:
    most = MOST_MIB[result.cell.profile] if name == ARCHIVER else None
    return format_with_limit(result.peak_mib(name), most)


def _rate(result: Result) -> str:
    if ARCHIVER not in result.samples:
        return ""
    return f"{result.cell.runs / result.elapsed_s(ARCHIVER):.0f}"


def _name(cell: Cell) -> str:
    content = "5 % changed" if cell.content == "changed" else cell.content
    return f"{cell.profile}, {cell.names}, {content}, {LABELS[cell.database]}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
