"""Measure the archiver and its alternatives, interleaved and repeated.

Each contender is a separate process with the same task: store all runs of a list in the database.
The bench checks the rows after each process.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import server
from bench.content import PROFILES, Offer, Totals
from bench.figures import ARCHIVER, Cell, Result
from bench.process import FailedError, Sample, measure
from bench.server import Api
from bench.states import State, States

ROOT = Path(__file__).parent.parent
DLT_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
WITHOUT_AGGREGATES = "without aggregates"
KEY = "key-of-the-bench"
CONTENDERS = (ARCHIVER, "bare", "script", "threads", "dlt", "limit")
PROGRAMS = {
    "bare": "bare_loop",
    "script": "script",
    "threads": "threaded_script",
    "dlt": "dlt_pipeline",
    "limit": "limit",
    WITHOUT_AGGREGATES: "without_aggregates",
}
DLT_DATASETS = {"sqlite": "main", "postgresql": "archive"}


class Task(NamedTuple):
    """The runs to fetch, their API, the number of connections, and the expected rows.

    `totals` is None if the database contains more than these runs.
    """

    api: Api
    run_list: Path
    runs: int
    totals: Totals | None
    connections: int = 8


@contextmanager
def serve_task(offer: Offer, folder: Path, latency_ms: float = 0) -> Iterator[Task]:
    """Serve runs, and yield the task to fetch all of them; write their list into `folder`."""
    run_list = folder / "runs.txt"
    run_list.write_text("".join(f"{run_id}\n" for run_id in offer.run_ids()))
    with server.serve(offer, latency_ms) as api:
        yield Task(api, run_list, offer.runs, api.totals)


def takes_part(contender: str, cell: Cell) -> bool:
    """Tell if a cell includes a contender: `limit` is measured for large new runs only."""
    return contender != "limit" or (cell.profile, cell.content) == ("large", "cold")


def run(contender: str, task: Task, state: State, *, is_again: bool = False) -> Sample:
    """Run a contender's process for the task; `is_again` if it did the same task there before.

    Raises:
        FailedError: it failed, sent too many or too few requests, or left wrong rows.
    """
    asked_before = task.api.stats().requests
    environment = environment_of(state, task)
    if contender == ARCHIVER:
        command = [sys.executable, "-m", "etl", "ingest", "--from", str(task.run_list)]
        sample = measure([*command, *["--refresh"] * is_again], environment, state.folder)
    else:
        python = DLT_PYTHON if contender == "dlt" else sys.executable
        program = f"bench.contenders.{PROGRAMS[contender]}"
        sample = measure([python, "-m", program, task.run_list], environment, state.folder)
    if contender == "limit":
        # It prints the time of its writes itself: it has to make its rows first.
        elapsed_s = float((state.folder / "output").read_text())
        sample = sample._replace(elapsed_s=elapsed_s)
    asked = task.api.stats().requests - asked_before
    if asked != task.runs:
        raise FailedError(f"{contender} sent {asked} requests for {task.runs} runs")
    _check(contender, task, state)
    return sample


def environment_of(state: State, task: Task | None = None) -> Mapping[str, str]:
    """Return a contender's whole environment for a database and its task there."""
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(state.folder),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": state.url,
        "RESULT_ARCHIVER__DATABASE__URL": state.url,
    }
    if task is None:
        return variables
    return variables | {
        "APPLITOOLS_API_KEY": KEY,
        "API_URL": task.api.url,
        "CONNECTIONS": str(task.connections),
        "RESULT_ARCHIVER__API__BASE_URL": task.api.url,
        "RESULT_ARCHIVER__API__CONNECTIONS": str(task.connections),
        "RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND": "0",
        # Unresolved runs must not become due again during the bench.
        "RESULT_ARCHIVER__POLLING__WATCH_EVERY": "7d",
    }


def _check(contender: str, task: Task, state: State) -> None:
    if contender == "bare" or task.totals is None:
        return
    kind = "sqlite" if state.url.startswith("sqlite") else "postgresql"
    found = state.totals(DLT_DATASETS[kind] if contender == "dlt" else "")
    if found != task.totals:
        raise FailedError(f"{contender} left {found} instead of {task.totals}")


class Bench:
    """Measures cells of one profile on one kind of database; each starts from the cell before."""

    def __init__(
        self, states: States, folder: Path, contenders: Sequence[str], repeats: int
    ) -> None:
        self._states = states
        self._folder = folder
        self._contenders = contenders
        self._repeats = repeats
        self._filled: dict[str, State] = {}

    def measure(self, cell: Cell) -> Result:
        """Return the samples of a cell. Each round runs every contender once, in another order."""
        contenders = [name for name in self._contenders if takes_part(name, cell)]
        if cell.content != "cold":
            self._fill(cell, [name for name in contenders if name not in self._filled])
        samples: dict[str, list[Sample]] = {name: [] for name in contenders}
        kind = "changed" if cell.content == "changed" else "unchanged"
        offer = Offer(PROFILES[cell.profile], cell.runs, kind, names=cell.names)
        with serve_task(offer, self._folder) as task:
            for repeat in range(self._repeats):
                shift = repeat % len(contenders)
                for name in contenders[shift:] + contenders[:shift]:
                    samples[name].append(self._measure_one(name, task, cell))
                    _log_sample(cell, name, samples[name][-1])
        return Result(cell, samples)

    def close(self) -> None:
        """Drop the remaining databases."""
        for state in self._filled.values():
            self._states.drop(state)
        self._filled = {}

    def _measure_one(self, name: str, task: Task, cell: Cell) -> Sample:
        if cell.content == "cold":
            state = self._states.new()
            sample = run(name, task, state)
            if name in self._filled:
                self._states.drop(self._filled[name])
            self._filled[name] = state
            return sample
        state = self._states.copy(self._filled[name])
        sample = run(name, task, state, is_again=True)
        self._states.drop(state)
        return sample

    def _fill(self, cell: Cell, contenders: Sequence[str]) -> None:
        """Fill databases as the cold cell does, without measuring."""
        offer = Offer(PROFILES[cell.profile], cell.runs, names=cell.names)
        with serve_task(offer, self._folder) as task:
            for name in contenders:
                self._filled[name] = self._states.new()
                run(name, task, self._filled[name])


def _log_sample(cell: Cell, name: str, sample: Sample) -> None:
    print(
        f"{cell.profile} {cell.names} {cell.content} {cell.database} {name}:"
        f" {sample.elapsed_s:.2f} s, {sample.cpu_s:.2f} s of CPU, {sample.peak_mib:.0f} MiB",
        file=sys.stderr,
    )
