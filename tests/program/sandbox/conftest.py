from collections.abc import Iterator

import pytest

from etl.sandbox.server import Sandbox, running
from etl.sandbox.world import World
from etl.sandbox.world_clock import Clock
from tests.program.sandbox.answers import END


@pytest.fixture(scope="session")
def world() -> World:
    """The default world; tests that start runs in one make their own."""
    return World(end=END)


@pytest.fixture(scope="session")
def sandbox(world: World) -> Iterator[Sandbox]:
    """The default world, served, with the clock standing still at its end. Only for reading."""
    with running(world, Clock(END, speed=0)) as sandbox:
        yield sandbox


@pytest.fixture
def own_sandbox() -> Iterator[Sandbox]:
    """A small world, served for one test, which may set the clock and start runs."""
    with running(World(end=END, runs=60), Clock(END, speed=0)) as sandbox:
        yield sandbox
