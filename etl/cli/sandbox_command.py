"""`sandbox`: the made-up API, served or listed."""

from datetime import UTC, datetime
from typing import NamedTuple

from etl import clock, display
from etl.errors import UsageError
from etl.sandbox import listing, server, world
from etl.sandbox.app import EXECUTE_KEY, READ_KEY
from etl.sandbox.clock import Clock
from etl.sandbox.listing import Format
from etl.sandbox.server import Sandbox


class World(NamedTuple):
    """Which world is wanted: its seed, size, and what its clock shows first (ISO 8601)."""

    seed: int
    runs: int
    now: str | None


class Serving(NamedTuple):
    """How the world is served."""

    port: int
    speed: float
    latency_ms: float


def print_list(wanted: World, name: str) -> int:
    """Print the run IDs of a world in one of the intake's formats."""
    try:
        form = Format(name)
    except ValueError:
        known = ", ".join(form.value for form in Format)
        raise UsageError(f"--list {name}: give one of {known}") from None
    for line in listing.render(_made(wanted), form, _start(wanted)):
        display.say(line.rstrip("\n"))
    return 0


def serve(wanted: World, serving: Serving) -> int:
    """Serve a world until SIGINT or SIGTERM."""
    try:
        its_clock = Clock(_start(wanted), serving.speed)
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    server.serve(
        _made(wanted), its_clock, _introduce, port=serving.port, latency_ms=serving.latency_ms
    )
    return 0


def _introduce(sandbox: Sandbox) -> None:
    display.say(f"serving {sandbox.url} until Ctrl-C; it explains itself at {sandbox.url}/")
    display.say(f"keys: {READ_KEY} (reads all), {EXECUTE_KEY} (needs each run's read token)")


def _made(wanted: World) -> world.World:
    """Make the world; its times hang on the day that it ends with, so that a day has one world."""
    start = _start(wanted)
    end = start if wanted.now else start.replace(hour=0, minute=0, second=0, microsecond=0)
    return world.World(end=end, seed=wanted.seed, runs=wanted.runs)


def _start(wanted: World) -> datetime:
    if wanted.now is None:
        return clock.now()
    try:
        moment = datetime.fromisoformat(wanted.now)
    except ValueError:
        raise UsageError(f"--now {wanted.now}: give ISO 8601, such as 2026-01-31T12:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
