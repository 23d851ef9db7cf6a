"""`sandbox`: the made-up API, served or listed."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from etl import clock, display
from etl.cli import options
from etl.errors import UsageError

if TYPE_CHECKING:
    from etl.sandbox.server import Sandbox
    from etl.sandbox.world import World


@click.command(epilog="Example: result-archiver sandbox --port 8642 --speed 60")
@click.option(
    "--port",
    type=int,
    metavar="PORT",
    default=8642,
    show_default=True,
    help="The port on loopback; 0 is any free one.",
)
@click.option(
    "--seed", type=int, metavar="N", default=1, show_default=True, help="Selects the made-up world."
)
@click.option(
    "--runs",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    default=300,
    show_default=True,
    help="The number of its runs.",
)
@click.option("--now", metavar="TIME", help="ISO 8601: the time of its clock at the start.")
@click.option(
    "--speed",
    type=options.NumberRange(min=0),
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help="Seconds of its clock for each real second.",
)
@click.option(
    "--latency-ms",
    type=options.NumberRange(min=0),
    metavar="MS",
    default=0.0,
    show_default=True,
    help="Delay of each answer.",
)
@click.option(
    "--list", "run_list", metavar="FORMAT", help="Only print its run IDs: txt, csv, json or jsonl."
)
def sandbox(
    *,
    port: int,
    seed: int,
    runs: int,
    now: str | None,
    speed: float,
    latency_ms: float,
    run_list: str | None,
) -> int:
    """Serve the API on loopback, with made-up runs.

    They progress, fail, end unresolved and are resolved later. SIGTERM and Ctrl-C end it.
    """
    from etl.sandbox.server import serve
    from etl.sandbox.world import World
    from etl.sandbox.world_clock import Clock

    start = _start(now)
    # Times hang on the day that the world ends with, so that a day has one world.
    end = start if now else start.replace(hour=0, minute=0, second=0, microsecond=0)
    world = World(end=end, seed=seed, runs=runs)
    if run_list:
        return _print_list(world, run_list, start)
    try:
        its_clock = Clock(start, speed)
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    serve(world, its_clock, _introduce, port=port, latency_ms=latency_ms)
    return 0


def _start(now: str | None) -> datetime:
    if now is None:
        return clock.now()
    try:
        moment = datetime.fromisoformat(now)
    except ValueError:
        raise UsageError(f"--now {now}: give ISO 8601, such as 2026-01-31T12:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _print_list(world: "World", name: str, moment: datetime) -> int:
    from etl.sandbox import listing

    try:
        form = listing.Format(name)
    except ValueError:
        forms = ", ".join(form.value for form in listing.Format)
        raise UsageError(f"--list {name}: give one of {forms}") from None
    for line in listing.render(world, form, moment):
        display.say(line.rstrip("\n"))
    return 0


def _introduce(sandbox: "Sandbox") -> None:
    from etl.sandbox.api import EXECUTE_KEY, READ_KEY

    display.say(f"serving {sandbox.url} until Ctrl-C; it explains itself at {sandbox.url}/")
    display.say(f"keys: {READ_KEY} (reads all), {EXECUTE_KEY} (needs each run's read token)")
