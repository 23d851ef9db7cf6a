"""The limits of requests in one process: rate, connections and waits of a source, budget, threads.

Pure: times are arguments, in seconds of any steady clock.
"""

from collections import deque
from typing import NamedTuple

PERMIT_LASTS_S = 0.05
"""Half of the tenth of a second by which the API may see more than the rate: see `RateLimit`.

The other half is for delays on the way to the API, which nobody here can see."""
ADAPT_EVERY_S = 0.05
BUSY_ENOUGH = 0.95
"""With this share of a core in use, another thread would gain nothing."""


class Pauses(NamedTuple):
    """The wait after a failed attempt: doubled from `first_s` up to `longest_s`."""

    first_s: float = 0.5
    longest_s: float = 30.0


class RequestLimits(NamedTuple):
    """The limits of requests to the API. 0 requests a second, or in all, means unlimited."""

    connections: int
    max_requests_per_second: float
    attempts: int
    max_wait_s: float
    max_requests: int = 0
    pauses: Pauses = Pauses()


class Budget:
    """The requests that a worker may send, and those under way, to all sources together.

    Those of the pass are shared out among its workers, some at a time.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self.sent = 0
        self.in_flight = 0
        self._is_limited = limits.max_requests > 0
        self._allowed = 0
        self._is_last = False

    def allow(self, requests: int, *, is_last: bool) -> None:
        """Allow this number of requests in all; `is_last`: the pass has no more to share out."""
        self._allowed, self._is_last = requests, is_last

    @property
    def is_out(self) -> bool:
        """Whether no request may be sent before more are allowed."""
        return self._is_limited and self.sent >= self._allowed

    @property
    def is_spent(self) -> bool:
        """Whether no request may be sent any more."""
        return self.is_out and self._is_last


class RateLimit:
    """The limits of one source in this process: its permits, its connections, and its waits.

    A permit is for one request, and is lost `PERMIT_LASTS_S` after its time. Without a rate,
    permits are for a time, and for any number of requests.
    """

    def __init__(self, limits: RequestLimits, budget: Budget) -> None:
        self.in_flight = 0
        self.connections = limits.connections
        self.budget = budget
        self.impatience = ""
        """Why nothing more is sent: the API asks for a longer wait than allowed."""
        rate = limits.max_requests_per_second
        self._spacing_s = 1 / rate if rate else 0.0
        self._lasts_s = max(PERMIT_LASTS_S, self._spacing_s)
        self._max_wait_s = limits.max_wait_s
        self._not_before = 0.0
        self._asked_until = 0.0
        self._permits: deque[float] = deque()
        self._low_mark = 0
        self._open_from = self._open_until = self._low_at = 0.0

    @property
    def has_room(self) -> bool:
        """Whether one more request may be under way."""
        return self.in_flight < self.connections

    def permit(self, begins_at: float, length_s: float) -> None:
        """Permit the requests of `length_s` seconds from `begins_at` on."""
        self._open_from, self._open_until = begins_at, begins_at + length_s
        self._low_at = begins_at + length_s / 2
        if self._spacing_s:
            count = max(1, round(length_s / self._spacing_s))
            self._permits.extend(begins_at + n * self._spacing_s for n in range(count))
            self._low_mark = count // 2

    def wait_s(self, now: float) -> float | None:
        """Return in how many seconds the next request may be sent; None: not before a permit."""
        at = max(now, self._not_before)
        if not self._spacing_s:
            return max(at, self._open_from) - now if at < self._open_until else None
        while self._permits and self._permits[0] + self._lasts_s < at:
            self._permits.popleft()
        return max(at, self._permits[0]) - now if self._permits else None

    def is_low(self, now: float) -> bool:
        """Return whether half of the permits are used or lost, once the pauses are over."""
        if not self._spacing_s:
            return now > self._low_at or self._not_before > self._low_at
        self.wait_s(now)  # drops those that are lost
        return len(self._permits) <= self._low_mark

    def pause_s(self, now: float) -> float:
        """Return in how many seconds the pauses are over."""
        return max(0.0, self._not_before - now)

    def send(self) -> None:
        """Count a request that is sent."""
        self.budget.sent += 1
        self.budget.in_flight += 1
        self.in_flight += 1
        if self._permits:
            self._permits.popleft()

    def receive(self) -> None:
        """Count a request that is back."""
        self.budget.in_flight -= 1
        self.in_flight -= 1

    def pause(self, until: float) -> None:
        """Send nothing before `until`."""
        self._not_before = max(self._not_before, until)

    def obey_retry_after(self, wait_s: float, now: float) -> None:
        """Send nothing for as long as the API asks to wait."""
        self._asked_until = max(self._asked_until, now + wait_s)
        self.pause(self._asked_until)
        if wait_s > self._max_wait_s:
            self.impatience = f"the API asks to wait {wait_s:.0f} s"


class Concurrency:
    """The number of threads that fetch at once: enough to keep one core busy, up to `most`.

    Python computes in one thread at a time; more threads would only wait for each other. The
    longer the API takes to answer, the more of them wait for the API instead.
    """

    def __init__(self, most: int) -> None:
        self.size = 1
        self._most = most
        self._since: float | None = None
        self._cpu_s = 0.0

    def pause(self) -> None:
        """Restart the measurement: the threads were kept from working."""
        self._since = None

    def is_due(self, now: float) -> bool:
        """Tell whether it is time to adapt the size."""
        return self._since is None or now - self._since >= ADAPT_EVERY_S

    def adapt(self, now: float, cpu_s: float) -> None:
        """Adapt the size to the CPU time that the process has used, all threads together."""
        if self._since is not None:
            busy = max((cpu_s - self._cpu_s) / (now - self._since), 0.001)
            self.size = min(max(int(self.size * BUSY_ENOUGH / busy), 1), self._most)
        self._since, self._cpu_s = now, cpu_s
