"""Several processes on one archive: the API sees one worker's manners, by its own log."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from subprocess import Popen

import pytest

from etl.sandbox.api import READ_KEY
from tests.support import fake_api
from tests.support.fake_api import Answer, FakeApi, result
from tests.support.program import Program, program

RATE = 50
PORTION = 5
MOST_IN_A_SECOND = RATE + PORTION
CONNECTIONS = 8
A_HANDFUL = 8


@pytest.fixture
def archiver(archiver: Program) -> Program:
    return archiver.given(
        RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND=str(RATE),
        RESULT_ARCHIVER__API__CONNECTIONS=str(CONNECTIONS),
    )


@contextmanager
def working(archiver: Program, number: int) -> Iterator[list[Popen[str]]]:
    """Start processes that each fetch all that is due."""
    with ExitStack() as stack:
        yield [stack.enter_context(archiver.started("ingest", "-q")) for _ in range(number)]


def track(archiver: Program, number: int, source: str = "") -> None:
    lines = "\n".join(f"{source}r-{position}" for position in range(number))
    listed = archiver.write(f"runs{source}.txt", lines)
    of_source = ["--source", source] if source else []
    assert archiver.call("track", "--from", listed, *of_source).exit_code == 0


def ends(processes: Sequence[Popen[str]]) -> list[int]:
    for process in processes:
        process.communicate(timeout=60)
    return [process.returncode for process in processes]


def await_requests(api: FakeApi, number: int) -> None:
    until = time.monotonic() + 30
    while len(api.log) < number:
        assert time.monotonic() < until, "too few requests"
        time.sleep(0.01)


def most_in_a_second(api: FakeApi) -> int:
    arrivals = [each.at for each in api.log]
    return max(sum(at <= other < at + 1 for other in arrivals) for at in arrivals)


def tell(figures: str) -> None:
    """Print the figures of the API's log; `pytest -s` shows them."""
    sys.stdout.write(f"\n{figures}\n")


@pytest.mark.parametrize("number", [2, 4])
def test_processes_together_keep_to_the_rate_and_the_connections(
    api: FakeApi, archiver: Program, number: int
) -> None:
    api.other = result()._replace(delay_s=0.05)
    track(archiver, 300)
    with working(archiver, number) as processes:
        assert ends(processes) == [0] * number
    assert len(api.log) == 300 == api.requests.total()
    tell(
        f"{number} processes at {RATE}/s: at most {most_in_a_second(api)} requests in a second,"
        f" {api.most_at_once} of {CONNECTIONS} connections"
    )
    assert most_in_a_second(api) <= MOST_IN_A_SECOND
    assert api.most_at_once <= CONNECTIONS
    took_s = api.log[-1].at - api.log[0].at
    assert took_s < 300 / RATE * 1.5, "the rate is used"
    passes = archiver.call("passes", "--json").json()
    assert min(each["requests"] for each in passes) > 300 / number / 4, "all of them work"


def test_connections_are_shared_with_a_process_that_comes_later(
    api: FakeApi, archiver: Program
) -> None:
    """The older one, which has all of them, gives some back."""
    api.other = result()._replace(delay_s=0.4)
    track(archiver, 120)
    with working(archiver, 1) as older:
        await_requests(api, 20)
        with working(archiver, 1) as younger:
            assert ends(older + younger) == [0, 0]
    assert api.most_at_once <= CONNECTIONS
    assert len({each.client for each in api.log if each.client}) >= 2


def test_a_wait_that_one_process_is_asked_for_is_kept_by_all(
    api: FakeApi, archiver: Program
) -> None:
    api.other = result()._replace(delay_s=0.02)
    track(archiver, 300)
    api.answers["r-150"] = [Answer(b"", 429, {"Retry-After": "3"}), result()]
    with working(archiver, 4) as processes:
        assert ends(processes) == [0] * 4
    [asked_at] = [each.at for each in api.log if each.status == 429]
    within = [each for each in api.log if asked_at < each.at < asked_at + 2.9]
    tell(f"after a 429: {len(within)} more requests of 4 processes")
    assert len(within) <= 4 * PORTION


@pytest.mark.parametrize("status", [401, 500])
def test_a_refusal_costs_a_handful_of_requests_in_all(
    api: FakeApi, archiver: Program, status: int
) -> None:
    api.other = Answer(b"", status)
    track(archiver, 300)
    with working(archiver, 4) as processes:
        assert set(ends(processes)) <= {3, 5, 0}
    tell(f"each answer is a {status}: {len(api.log)} requests of 4 processes")
    assert len(api.log) <= A_HANDFUL


def test_an_api_that_dies_costs_the_requests_under_way_and_a_handful(
    api: FakeApi, archiver: Program
) -> None:
    api.other = result()._replace(delay_s=0.02)
    track(archiver, 400)
    with working(archiver, 4) as processes:
        await_requests(api, 100)
        api.other = Answer(b"", 500)
        assert set(ends(processes)) == {5}
    failed = sum(each.status == 500 for each in api.log)
    tell(f"the API dies: {failed} more requests of 4 processes")
    assert failed <= CONNECTIONS + 4 * PORTION + A_HANDFUL


def test_a_killed_process_delays_the_others_by_a_second_at_most(
    api: FakeApi, archiver: Program
) -> None:
    api.other = result()
    track(archiver, 300)
    with working(archiver, 2) as processes:
        await_requests(api, 100)
        processes[0].kill()
        killed_at = time.monotonic()
        assert ends(processes)[1] in {0, 1}
    after = [each.at for each in api.log if killed_at - 0.2 < each.at < killed_at + 3]
    longest_s = max(later - earlier for earlier, later in pairwise(after))
    tell(f"a process is killed: the others wait for up to {longest_s:.2f} s")
    assert longest_s <= 1


def test_two_sources_do_not_slow_each_other(
    tmp_path: Path, database_url: str, api: FakeApi
) -> None:
    """One of them asks everybody to wait, and holds its connections; the other works on."""
    with fake_api.serving() as slow:
        archiver = two_accounts(tmp_path, database_url, api, slow)
        slow.other = result()._replace(delay_s=1.0)
        slow.answers["slowr-5"] = [Answer(b"", 429, {"Retry-After": "4"}), result()]
        api.other = result()
        track(archiver, 40, "slow")
        track(archiver, 200, "quick")
        with working(archiver, 2) as processes:
            assert ends(processes) == [0, 0]
    took_s = api.log[-1].at - api.log[0].at
    assert len(api.log) == 200
    tell(f"beside a slow source: 200 requests in {took_s:.1f} s at {RATE}/s")
    assert took_s < 200 / RATE * 1.5
    assert most_in_a_second(api) <= MOST_IN_A_SECOND


def two_accounts(folder: Path, database_url: str, quick: FakeApi, slow: FakeApi) -> Program:
    archiver = program(folder, database_url, quick.url).given(
        RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND=str(RATE), KEY=READ_KEY
    )
    archiver.write(
        "config.toml",
        f'[sources.quick]\nbase_url = "{quick.url}"\nkey_env = "KEY"\n'
        f'[sources.slow]\nbase_url = "{slow.url}"\nkey_env = "KEY"\n',
    )
    return archiver
