from datetime import timedelta

import pytest

from etl.sandbox.world_clock import Clock
from tests.program.sandbox.answers import END


class Ticks:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


def test_a_clock_runs_at_its_speed(ticks: Ticks) -> None:
    clock = Clock(END, speed=60, monotonic=ticks)
    ticks.now_s += 2
    assert clock.now() == END + timedelta(minutes=2)


def test_a_clock_at_speed_0_stands_still(ticks: Ticks) -> None:
    clock = Clock(END, speed=0, monotonic=ticks)
    ticks.now_s += 2
    assert clock.now() == END


def test_a_new_speed_holds_from_now_on(ticks: Ticks) -> None:
    clock = Clock(END, monotonic=ticks)
    ticks.now_s += 10
    clock.set(speed=100)
    ticks.now_s += 1
    assert clock.now() == END + timedelta(seconds=110)


def test_a_clock_that_is_set_keeps_its_speed(ticks: Ticks) -> None:
    clock = Clock(END, speed=5, monotonic=ticks)
    clock.set(now=END - timedelta(days=1))
    ticks.now_s += 1
    assert clock.now() == END - timedelta(days=1) + timedelta(seconds=5)


def test_a_clock_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        Clock(END.replace(tzinfo=None))


@pytest.mark.parametrize("speed", [-1, float("nan"), float("inf"), 1e9])
def test_a_clock_of_an_impossible_speed_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="is not from 0"):
        Clock(END, speed=speed)
