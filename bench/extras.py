"""Measure the archiver alone: throughput with a slow API, memory, start-up."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bench.compare import environment_of, run, serve_task
from bench.content import PROFILES, Offer
from bench.figures import ARCHIVER, LABELS, MOST_MIB, Figure
from bench.process import FailedError, measure
from bench.states import States

LATENCY_MS = 100
LATENT_S = 30
"""Duration of the latency part if only requests took time."""
REACHED = {8: 0.92, 64: 0.85}
"""The smallest share of connections / latency, by connections."""
LENGTHS = (("small", 300, 30_000), ("large", 60, 600))
"""Profile, few runs, and many."""
GROWTH = 1.1
FEW_DUE, FEW_DUE_MIB = 20, 65
START_REPEATS = 7
HELP_S, ONE_RUN_S = 0.25, 0.5


def latency(states: States, folder: Path, connections: int) -> Iterator[Figure]:
    """Ingest unique runs from a slow API: the share of the best possible rate.

    Raises:
        FailedError: the API saw more connections than configured.
    """
    at_best_per_s = connections / (LATENCY_MS / 1000)
    runs = int(LATENT_S * at_best_per_s)
    offer = Offer(PROFILES["medium"], runs, names="unique")
    with serve_task(offer, folder, LATENCY_MS) as task:
        state = states.new()
        sample = run(ARCHIVER, task._replace(connections=connections), state)
        states.drop(state)
        most = task.api.stats().most_connections
    if most > connections:
        raise FailedError(f"the API saw {most} connections, {connections} are configured")
    name = f"{LATENCY_MS} ms, {connections} connections"
    share = runs / sample.elapsed_s / at_best_per_s
    yield Figure(f"{name}: rate", share, "of connections / latency", at_least=REACHED[connections])
    yield Figure(f"{name}: most at once", most, "connections", at_most=connections)


def memory(states: States, folder: Path, kind: str) -> Iterator[Figure]:
    """Ingest few runs into an archive; then few and many: the peak should stay the same."""
    with serve_task(Offer(PROFILES["medium"], FEW_DUE, names="unique"), folder) as task:
        state = states.new()
        upgrade = [sys.executable, "-m", "etl", "db", "upgrade"]
        measure(upgrade, environment_of(state, task), state.folder)
        name = f"{FEW_DUE} due runs, {LABELS[kind]}: peak"
        yield Figure(name, run(ARCHIVER, task, state).peak_mib, "MiB", at_most=FEW_DUE_MIB)
        states.drop(state)
    for profile, few, many in LENGTHS:
        peaks = {}
        for runs in (few, many):
            with serve_task(Offer(PROFILES[profile], runs, names="unique"), folder) as task:
                state = states.new()
                peaks[runs] = run(ARCHIVER, task, state).peak_mib
                states.drop(state)
            name = f"{runs} {profile} runs, {LABELS[kind]}: peak"
            yield Figure(name, peaks[runs], "MiB", at_most=MOST_MIB[profile])
        grown = peaks[many] / peaks[few]
        name = f"{profile}, {LABELS[kind]}: many / few runs"
        yield Figure(name, grown, "times", at_most=GROWTH)


def start(states: States, folder: Path, kind: str) -> Iterator[Figure]:
    """Measure whole processes with minimal work."""
    if kind == "sqlite":
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        command = [sys.executable, "-m", "etl", "--help"]
        times = [measure(command, environment, folder).elapsed_s for _ in range(START_REPEATS)]
        yield Figure("--help", median(times), "s", at_most=HELP_S)
    first, again = [], []
    with serve_task(Offer(PROFILES["small"], 1), folder) as task:
        for _ in range(START_REPEATS):
            state = states.new()
            first.append(run(ARCHIVER, task, state).elapsed_s)
            again.append(run(ARCHIVER, task, state, is_again=True).elapsed_s)
            states.drop(state)
    yield Figure(f"one run, {LABELS[kind]}", median(again), "s", at_most=ONE_RUN_S)
    yield Figure(f"one run, {LABELS[kind]}, new database", median(first), "s")
