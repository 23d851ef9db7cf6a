"""Measure the speed of two workers beside one: `verify`, `replay`, and the ingest of large runs."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from sqlalchemy import text

from bench.compare import environment_of, run, serve_task
from bench.content import PROFILES, History, Offer
from bench.figures import ARCHIVER, LABELS, Figure
from bench.fill import fill
from bench.process import measure
from bench.states import State, States
from etl.db import database
from etl.db.database import writing

INGESTED, ARCHIVED = 100, 16_000
"""Medium runs: those ingested first, so that a pass decides on test ids, and all."""
LARGE_RUNS = 240
MOST_TIME, LEAST_SPEED = 0.6, 1.4


def workers(states: States, folder: Path, kind: str, repeats: int) -> Iterator[Figure]:
    """Compare two workers with one, in turns."""
    state = _fill_archive(states, folder)
    environment = environment_of(state)
    for command in ("verify", "replay"):
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(repeats):
            for number, taken_s in times.items():
                options = [command, "--workers", str(number)]
                taken_s.append(_measure_s(options, environment, state.folder))
        yield from _compare_times(f"{command}, {LABELS[kind]}", times)
    states.drop(state)
    yield from _ingest(states, folder, kind, repeats)


def _fill_archive(states: States, folder: Path) -> State:
    state, history = states.new(), History(runs=ARCHIVED)
    profile = PROFILES["medium"]
    with serve_task(Offer(profile, INGESTED, history=history), folder) as task:
        run(ARCHIVER, task, state)
    engine = database.connect(state.url)
    fill(engine, Offer(profile, ARCHIVED - INGESTED, first=INGESTED, history=history))
    if engine.dialect.name == "postgresql":
        with writing(engine) as connection:
            connection.execute(text("ANALYZE"))  # as autovacuum has done by then
    engine.dispose()
    return state


def _compare_times(name: str, times: Mapping[int, Sequence[float]]) -> Iterator[Figure]:
    alone, together = median(times[1]), median(times[2])
    yield Figure(f"{name}: 1 process", alone, "s")
    is_bound = not name.startswith("replay, SQLite")  # which has one writer at a time
    most = {"at_most": MOST_TIME} if is_bound else {}
    yield Figure(f"{name}: 2 processes / 1", together / alone, "of the time", **most)


def _ingest(states: States, folder: Path, kind: str, repeats: int) -> Iterator[Figure]:
    times: dict[str, list[float]] = {"1": [], "2": []}
    with serve_task(Offer(PROFILES["large"], LARGE_RUNS), folder) as task:
        for _ in range(repeats):
            for number, taken_s in times.items():
                state = states.new()
                together = [] if number == "1" else ["--workers", number]
                options = ["ingest", "--from", str(task.run_list), *together]
                taken_s.append(_measure_s(options, environment_of(state, task), state.folder))
                states.drop(state)
    alone, together_s = median(times["1"]), median(times["2"])
    name = f"large new runs, {LABELS[kind]}"
    yield Figure(f"{name}: 1 worker", LARGE_RUNS / alone, "runs/s")
    least = {"at_least": LEAST_SPEED} if kind == "postgresql" else {}
    yield Figure(f"{name}: 2 workers / 1", alone / together_s, "of the rate", **least)


def _measure_s(options: Sequence[str], environment: Mapping[str, str], folder: Path) -> float:
    return measure([sys.executable, "-m", "etl", *options], environment, folder).elapsed_s
