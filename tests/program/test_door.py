"""The door for fetching, the same for both ways: threads of this process, and a child process."""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from etl import clock
from etl.answers.outcome import Answer, Deferred, Outcome, Target, Unchanged
from etl.config.settings import Api, Config, Security, Source
from etl.fetch.door import AskPermits, Fetching, Way, in_child, in_threads, open_fetching
from etl.fetch.messages import BatchSize, Begin, TargetAsk
from etl.fetch.permits import Halt
from etl.fetch.rate_limit import Pauses, RequestLimits
from etl.secrets.keys import DEFAULT_SOURCE
from tests.support.fake_api import Answer as Reply
from tests.support.fake_api import FakeApi, result
from tests.support.permits import LoneWorker, given_by

LIMITS = RequestLimits(4, 0, 3, 300, pauses=Pauses(0.001, 0.002))
NOW = datetime(2024, 5, 1, tzinfo=UTC)


@pytest.fixture(params=[in_threads, in_child], ids=["threads", "child"])
def way(request: pytest.FixtureRequest) -> Way:
    chosen: Way = request.param
    return chosen


@pytest.fixture
def begin(api: FakeApi, tmp_path: Path) -> Begin:
    key_file = tmp_path / "key"
    key_file.write_text("a key")
    config = Config(
        sources={
            DEFAULT_SOURCE: Source(api.url, key_file=str(key_file)),
            "other": Source("http://127.0.0.1:9", key_file=str(key_file)),
        },
        api=Api(api.url, max_requests_per_second=0),
        security=Security(str(tmp_path / "token.key")),
    )
    return Begin(config, LIMITS, 400, batches=2, low_mark=50, size=BatchSize(runs=100, wait_s=0.05))


def targets(number: int, source: str = DEFAULT_SOURCE) -> list[Target]:
    return [Target(f"{source}-{position}", source, None, None) for position in range(number)]


def giving(
    wanted: Sequence[Target], asked_without: list[Sequence[str]] | None = None
) -> Callable[[TargetAsk], list[Target]]:
    """Return a claim that gives `wanted` once, without the sources that are stopped."""
    left = list(wanted)

    def claim(ask: TargetAsk) -> list[Target]:
        if asked_without is not None:
            asked_without.append(ask.without)
        chosen = [each for each in left if each.source not in ask.without][: ask.count]
        for each in chosen:
            left.remove(each)
        return chosen

    return claim


def permitting(fetching: Fetching) -> AskPermits:
    return given_by(LoneWorker(LIMITS), fetching)


def outcomes_of(fetching: Fetching, wanted: Sequence[Target]) -> Iterator[Outcome]:
    for batch in fetching.batches(giving(wanted), permitting(fetching)):
        yield from batch.outcomes()
        batch.done()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_each_target_comes_back_once(api: FakeApi, begin: Begin, way: Way) -> None:
    api.other = result()
    wanted = targets(400)
    with open_fetching(begin, clock.now, way) as fetching:
        got = list(outcomes_of(fetching, wanted))
    assert sorted(each.run_id for each in got) == sorted(each.run_id for each in wanted)
    assert all(isinstance(each, Answer) for each in got)
    assert fetching.requests == 400 == api.requests.total()
    assert fetching.end is not None
    assert fetching.end.halt is None


def test_known_bytes_come_back_as_unchanged(api: FakeApi, begin: Begin, way: Way) -> None:
    api.other = result()
    with open_fetching(begin, clock.now, way) as fetching:
        [answer] = outcomes_of(fetching, targets(1))
    assert isinstance(answer, Answer)
    known = targets(1)[0]._replace(fingerprint=answer.body.sha256)
    with open_fetching(begin, clock.now, way) as fetching:
        [again] = outcomes_of(fetching, [known])
    assert isinstance(again, Unchanged)


def test_no_more_is_fetched_while_no_batch_is_committed(
    api: FakeApi, begin: Begin, way: Way
) -> None:
    api.other = result()
    with open_fetching(begin, clock.now, way) as fetching:
        batches = fetching.batches(giving(targets(400)), permitting(fetching))
        held = [next(batches), next(batches)]
        time.sleep(0.3)
        before = api.requests.total()
        time.sleep(0.3)
        assert api.requests.total() == before < 400
        for batch in held:
            batch.done()
        for batch in batches:
            batch.done()
    assert api.requests.total() == 400


def test_a_refused_key_stops_its_source_alone(api: FakeApi, begin: Begin, way: Way) -> None:
    api.other = Reply(b"", 401)
    asked: list[Sequence[str]] = []
    with open_fetching(begin, clock.now, way) as fetching:
        claim = giving([*targets(200), *targets(3, "other")], asked)
        got = [
            each
            for batch in fetching.batches(claim, permitting(fetching))
            for each in batch.outcomes()
        ]
    assert fetching.end is not None
    assert fetching.end.halt is Halt.REFUSED
    assert "refused the API key (401)" in fetching.end.halt_reason
    assert api.requests.total() <= 4
    assert DEFAULT_SOURCE in asked[-1]
    assert all(isinstance(each, Deferred) for each in got)


def test_a_stop_lets_requests_under_way_come_back(api: FakeApi, begin: Begin, way: Way) -> None:
    api.other = result()._replace(delay_s=0.2)
    with open_fetching(begin, clock.now, way) as fetching:
        batches = fetching.batches(giving(targets(400)), permitting(fetching))
        first = next(batches)
        fetching.stop(grace_s=10)
        got = [*first.outcomes(), *(each for batch in batches for each in batch.outcomes())]
    assert len(got) == api.requests.total() < 400
    assert fetching.end is not None
    assert fetching.end.halt is Halt.INTERRUPTED


def test_a_stop_waits_no_longer_than_its_grace(api: FakeApi, begin: Begin, way: Way) -> None:
    api.answers["default-0"] = [result()]
    api.other = result()._replace(delay_s=20)
    with open_fetching(begin, clock.now, way) as fetching:
        batches = fetching.batches(giving(targets(400)), permitting(fetching))
        next(batches)
        began = time.monotonic()
        fetching.stop(grace_s=0.2)
        assert sum(len(batch.outcomes()) for batch in batches) == 0
        assert time.monotonic() - began < 5


def test_everything_is_closed_at_the_end_of_a_pass(api: FakeApi, begin: Begin, way: Way) -> None:
    """Also where a request breaks: its traceback must not keep the connections open."""
    api.other = result()
    for number in range(0, 40, 7):
        api.answers[f"default-{number}"] = [Reply(b"", 500), result()]
    before = None
    for _ in range(5):
        with open_fetching(begin, clock.now, way) as fetching:
            assert len(list(outcomes_of(fetching, targets(40)))) == 40
        time.sleep(0.05)
        before = before or open_files()
        assert open_files() <= before
