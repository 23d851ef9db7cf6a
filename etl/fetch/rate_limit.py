"""The limits that all sources of a pass share: rate, connections, budget, and threads.

Pure: times are arguments, in seconds of any steady clock.
"""

from typing import NamedTuple

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


class RateLimit:
    """The limits that all sources of a pass share: one rate, one number of connections, one budget.

    Times are seconds of any steady clock.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self.in_flight = 0
        self.sent = 0
        self.impatience = ""
        """Why nothing more is sent: the API asks for a longer wait than allowed."""
        self._limits = limits
        self._not_before = 0.0
        self._asked_until = 0.0

    @property
    def is_spent(self) -> bool:
        """Whether the pass has sent all requests that it may send."""
        return 0 < self._limits.max_requests <= self.sent

    @property
    def has_room(self) -> bool:
        """Whether one more request may be under way."""
        return self.in_flight < self._limits.connections

    def wait_s(self, now: float) -> float:
        """Return in how many seconds the next request may be sent."""
        return max(0.0, self._not_before - now)

    def send(self, now: float) -> None:
        """Count a request that is sent."""
        self.sent += 1
        self.in_flight += 1
        if rate := self._limits.max_requests_per_second:
            self._not_before = max(now, self._not_before) + 1 / rate

    def pause(self, until: float) -> None:
        """Send nothing before `until`."""
        self._not_before = max(self._not_before, until)

    def obey_retry_after(self, wait_s: float, now: float) -> None:
        """Send nothing for as long as the API asks to wait."""
        self._asked_until = max(self._asked_until, now + wait_s)
        self.pause(self._asked_until)
        if wait_s > self._limits.max_wait_s:
            self.impatience = f"the API asks to wait {wait_s:.0f} s"

    def asked_wait_s(self, now: float) -> float:
        """Return the rest of the wait that the API asked for."""
        return max(0.0, self._asked_until - now)


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
