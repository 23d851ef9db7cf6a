"""The one door for fetching: a pass gives targets and gets batches of outcomes.

    with open_fetching(begin) as fetching:
        for batch in fetching.batches(claim):
            commits.submit(batch)

A few runs are fetched by threads of this process, many by a child process; the caller cannot tell.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from etl import clock
from etl.answers.outcome import Outcome, Target
from etl.config.settings import Config
from etl.errors import FetchingLostError
from etl.fetch.messages import Ask, Batch, Begin, End, TargetAsk, unpack
from etl.fetch.permits import PermitAsk, Permits

CHILD_FROM_RUNS = 300
"""With fewer due runs, starting a child process takes longer than it saves."""

ROUTE_VARIABLES = {"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTPS_PROXY", "ALL_PROXY"}

Claim = Callable[[TargetAsk], list[Target]]
"""Returns [] when nothing is due."""
AskPermits = Callable[[PermitAsk], None]


class Peer(Protocol):
    """The fetching side of one pass: `FetchPool` or `ChildProcess`."""

    def receive(self) -> Ask | Batch:
        """Wait for a message to the pass, and return it. The last one is a batch with its end."""

    def give(self, targets: Sequence[Target]) -> None:
        """Queue the targets that were asked for."""

    def drop(self) -> None:
        """Drop the targets that wait to be fetched."""

    def permit(self, permits: Permits) -> None:
        """Take permits to send requests."""

    def done(self) -> None:
        """Count a batch as committed: the credit for another one."""

    def stop(self) -> None:
        """Start no more requests, and wait for those under way."""

    def give_up(self) -> None:
        """Wait no longer for requests under way."""

    def close(self) -> None:
        """Close all that was opened for the pass."""


Clock = Callable[[], datetime]
Way = Callable[[Begin, Clock], Peer]
"""A way of fetching: opens the fetching side for one pass."""


class FetchedBatch(NamedTuple):
    """Outcomes to be committed together. `done` must be called once they are."""

    batch: Batch
    done: Callable[[], None]

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes, one a run."""
        return unpack(self.batch)


class Fetching:
    """The fetching of one pass. `end` and `requests` say how it went."""

    def __init__(self, peer: Peer) -> None:
        self.end: End | None = None
        self.requests = 0
        self._peer = peer
        self._grace: threading.Timer | None = None

    def batches(self, claim: Claim, ask_permits: AskPermits) -> Iterator[FetchedBatch]:
        """Yield batches of outcomes until no target is left, or the fetching is stopped.

        `ask_permits` is called with each demand for permits, and answers by `permit`, later.

        Raises:
            FetchingLostError: the child process is gone. Its earlier batches were yielded.
        """
        while self.end is None:
            message = self._receive()
            if message is None:
                return
            if isinstance(message, Ask):
                if message.permits is not None:
                    ask_permits(message.permits)
                if message.targets is not None:
                    self._peer.give(claim(message.targets))
                continue
            self.requests, self.end = message.requests, message.end
            if message.count:
                yield FetchedBatch(message, self._peer.done)

    def drop(self) -> None:
        """Drop the targets that wait: others are asked for. Any thread may call it."""
        self._peer.drop()

    def permit(self, permits: Permits) -> None:
        """Pass permits on. Any thread may call it."""
        self._peer.permit(permits)

    def _receive(self) -> Ask | Batch | None:
        try:
            return self._peer.receive()
        except FetchingLostError:
            if self._grace is None:
                raise
            return None  # we stopped it ourselves

    def stop(self, grace_s: float) -> None:
        """Start no more requests; give up those that are not back after `grace_s` seconds."""
        self._peer.stop()
        self._grace = threading.Timer(grace_s, self._peer.give_up)
        self._grace.daemon = True
        self._grace.start()

    def close(self) -> None:
        """Close all that was opened for the pass."""
        if self._grace is not None:
            self._grace.cancel()
        self._peer.close()


@contextmanager
def open_fetching(begin: Begin, now: Clock, way: Way | None = None) -> Iterator[Fetching]:
    """Open the door for one pass; by default in the `way` that suits the number of due runs.

    Raises:
        FetchingLostError: the child process cannot be started.
    """
    way = way or (in_child if begin.due >= CHILD_FROM_RUNS else in_threads)
    fetching = Fetching(way(begin, now))
    try:
        yield fetching
    finally:
        fetching.close()


def check_routes(config: Config) -> None:
    """Check the environment's proxy and CA bundle for each source; nothing is connected.

    Raises:
        ConfigError: one of them can never work.
    """
    if not ROUTE_VARIABLES & {name.upper() for name in os.environ}:
        return
    # Loaded here: a pass with a child process needs none of it.
    from etl.fetch.route import read_environment, read_route  # noqa: PLC0415

    for source in config.sources.values():
        if source.base_url.lower().startswith("https:"):
            proxies = read_environment(source.base_url)["proxies"]
            read_route(source.base_url, proxies).check()


def in_child(begin: Begin, now: Clock) -> Peer:
    """Fetch by a child process, whose clock is corrected to show the time of ours."""
    # Loaded here: threads of this process need none of it.
    from etl.fetch.child_process import ChildProcess  # noqa: PLC0415

    ahead = now() - clock.now()
    return ChildProcess(replace(begin, clock_ahead_s=ahead.total_seconds()))


def in_threads(begin: Begin, now: Clock) -> Peer:
    """Fetch by threads of this process."""
    # Loaded here: a pass with a child process needs none of it.
    from etl.fetch.fetcher import RunFetcher  # noqa: PLC0415
    from etl.fetch.pool import FetchPool  # noqa: PLC0415

    return FetchPool(begin, RunFetcher(begin.config, now))
