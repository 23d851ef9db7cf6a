"""The demands for permits to send requests, the answers to them, and why a source is halted.

Pure: the fetching side asks, and the pass takes the permits from the rows that all workers share.
"""

from enum import Enum

from msgspec import Struct


class Halt(Enum):
    """Why a pass stops before its work is done; the rest stays due."""

    DOWN = "down"
    """The API does not answer, or answers something else than results."""
    BUSY = "busy"
    """The API asks for a longer wait than `api.max_wait_s`."""
    REFUSED = "refused"
    """The API refuses the key."""
    NO_RESOURCES = "no_resources"
    """This machine lacks file descriptors; nothing is known of the API."""
    INTERRUPTED = "interrupted"
    """A person or the system stopped the pass."""


class PermitAsk(Struct, array_like=True, frozen=True):
    """Ask for permits to send `room` requests to a source, and report what the API said.

    With `room` 0 it is only a report. `answered_at` is the time of the last result, `asked_until`
    the end of the wait that the API asks for. Times are seconds of this machine's steady clock,
    0 if there is none. `connections` is the number that may be used, as last permitted; `sent` the
    requests to all sources up to now.
    """

    source: str
    room: int
    probes: bool
    connections: int
    in_flight: int
    sent: int
    answered_at: float
    asked_until: float
    halt: Halt | None
    halt_reason: str


class Allowed(Struct, array_like=True, frozen=True):
    """The requests that a worker may send in a pass, in all; `is_last`: it gets no more."""

    requests: int
    is_last: bool


class Permits(Struct, array_like=True, frozen=True):
    """Permits to send the requests of `length_s` seconds to a source, from `begins_at` on.

    With `length_s` 0 ask again at `begins_at`; if that is None, they only tell news.
    `connections` is the number that may be used from now on. `may_probe`: no other worker probes
    the API. `allowed`: None says nothing new. Times are as in `PermitAsk`.
    """

    source: str
    begins_at: float | None
    length_s: float
    connections: int
    may_probe: bool
    answered_at: float = 0
    asked_until: float = 0
    halt: Halt | None = None
    halt_reason: str = ""
    allowed: Allowed | None = None
