"""What the archiver alone has to show: how it bears latency, what it holds in memory, its start."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench import server
from bench.compare import Task, run, write_list
from bench.figures import ARCHIVER, LABELS, Table, against, below
from bench.process import FailedError, measure
from bench.states import States

LATENCY_MS = 100
LATENT_S = 15
"""How long the runs of the latency part would take if requests were all there is."""
REACHED = 0.92
FEW_RUNS, MANY_RUNS = 300, 30_000
GROWTH = 1.1
START_REPEATS = 7
HELP_S, ONE_RUN_S = 0.25, 0.5


class Figure(NamedTuple):
    """One measured number with its unit, and the bound that it should keep to, if any."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def shown(self) -> str:
        """The value with its bound, and a mark where it is beyond."""
        if self.at_least is not None:
            return against(self.value, self.at_least)
        return below(self.value, self.at_most)


def table(figures: Sequence[Figure]) -> Table:
    """Return a row for each figure."""
    rows = [[figure.name, figure.shown, figure.unit] for figure in figures]
    return Table("The archiver alone / bound (! beyond it):", ["", "", "unit"], rows)


def latency(states: States, folder: Path, connections: int) -> Iterator[Figure]:
    """Ingest with a slow API: its rate as a share of what so many connections can have at best.

    Raises:
        FailedError: the API saw more connections than configured.
    """
    at_best_per_s = connections / (LATENCY_MS / 1000)
    runs = int(LATENT_S * at_best_per_s)
    run_list = write_list(folder, runs)
    with server.serving("small", runs, "unchanged", LATENCY_MS) as api:
        state = states.new()
        sample = run(ARCHIVER, Task(api, run_list, runs, connections), state)
        states.drop(state)
        most = api.stats().most_connections
    if most > connections:
        raise FailedError(f"the API saw {most} connections, {connections} are configured")
    name = f"{LATENCY_MS} ms, {connections} connections"
    share = runs / sample.elapsed_s / at_best_per_s
    yield Figure(f"{name}: rate", share, "of connections / latency", at_least=REACHED)
    yield Figure(f"{name}: most at once", most, "connections", at_most=connections)


def memory(states: States, folder: Path, kind: str) -> Iterator[Figure]:
    """Ingest few and many small runs: the peak stays the same."""
    peaks = {}
    for runs in (FEW_RUNS, MANY_RUNS):
        run_list = write_list(folder, runs)
        with server.serving("small", runs, "unchanged") as api:
            state = states.new()
            peaks[runs] = run(ARCHIVER, Task(api, run_list, runs), state).peak_mib
            states.drop(state)
        yield Figure(f"{runs} runs, {LABELS[kind]}: peak", peaks[runs], "MiB", at_most=80)
    grown = peaks[MANY_RUNS] / peaks[FEW_RUNS]
    yield Figure(f"{LABELS[kind]}: many / few runs", grown, "times", at_most=GROWTH)


def start(states: States, folder: Path, kind: str) -> Iterator[Figure]:
    """Measure whole processes that do as little as can be."""
    if kind == "sqlite":
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        command = [sys.executable, "-m", "etl", "--help"]
        times = [measure(command, environment, folder).elapsed_s for _ in range(START_REPEATS)]
        yield Figure("--help", median(times), "s", at_most=HELP_S)
    run_list = write_list(folder, 1)
    first, again = [], []
    with server.serving("small", 1, "unchanged") as api:
        task = Task(api, run_list, 1)
        for _ in range(START_REPEATS):
            state = states.new()
            first.append(run(ARCHIVER, task, state).elapsed_s)
            again.append(run(ARCHIVER, task, state, is_again=True).elapsed_s)
            states.drop(state)
    yield Figure(f"one run, {LABELS[kind]}", median(again), "s", at_most=ONE_RUN_S)
    yield Figure(f"one run, {LABELS[kind]}, new database", median(first), "s")
