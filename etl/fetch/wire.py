"""What the process that stores and the process that fetches tell each other, and how.

Messages are msgpack with a type for each field: what comes in is checked, and nothing in it is
ever run. The API keys are not among them: both processes read those where they are kept.
"""

import threading
from collections.abc import Sequence
from typing import Any, BinaryIO, Generic, TypeVar

from msgspec import DecodeError, Raw, Struct, msgpack

from etl.answers.normalize import Rows
from etl.answers.outcome import Fetched, Outcome, Target
from etl.config.settings import Config
from etl.fetch.dispatch import Halt, Limits

MAGIC = b"RA\x01"
SIZE_BYTES = 5
"""Before each message go three bytes, which tell it from all else, and its size."""


class Begin(Struct, array_like=True, tag=True):
    """Fetch for a new pass, with so many `threads`; tell when no more than `low_mark` jobs wait.

    So many batches may be unwritten, `most_batches`. `asked_wait_s` is for how long the API asked
    to be left alone.
    """

    config: Config
    limits: Limits
    threads: int
    low_mark: int
    most_batches: int
    asked_wait_s: float


class Offer(Struct, array_like=True, tag=True):
    """Fetch these, too."""

    targets: list[Target]


class Written(Struct, array_like=True, tag=True):
    """A batch of outcomes is out of the way."""


class Interrupt(Struct, array_like=True, tag=True):
    """Start no more requests."""

    reason: str


class Close(Struct, array_like=True, tag=True):
    """The pass is over: send what is left."""


Order = Begin | Offer | Written | Interrupt | Close


class State(Struct, array_like=True, frozen=True):
    """How the fetching stands; it knows of so many `offers`."""

    offers: int = 0
    is_low: bool = True
    """Whether few jobs wait: it is time to offer more."""
    is_spent: bool = False
    """Whether all requests were sent that the pass may send."""
    is_idle: bool = True
    """Whether nothing is under way, and nothing will be without more jobs."""
    halted: list[str] = []
    """The sources that are not asked any more."""


class End(Struct, array_like=True, frozen=True):
    """What is known when all is over; see `Exchange.asked_wait_s` and `Exchange.worst_halt`."""

    asked_wait_s: float
    halt: Halt | None
    halt_reason: str


class Report(Struct, array_like=True):
    """Outcomes to be written, together, and how many; and how it stands now."""

    state: State
    requests: int
    runs: int
    packed: Raw
    end: End | None = None
    """The last report of a pass has it."""


def pack_rows(rows: Rows) -> Raw:
    """Return rows as they travel, which takes a fifth of the memory."""
    return Raw(msgpack.encode(rows))


def pack(outcomes: Sequence[Outcome | Fetched]) -> Raw:
    """Return outcomes as they travel."""
    return Raw(msgpack.encode(outcomes))


def unpack(packed: Raw) -> list[Outcome]:
    """Return the outcomes that `pack` was given, answers with their rows."""
    return _OUTCOMES.decode(packed)


_OUTCOMES = msgpack.Decoder(list[Outcome])

T = TypeVar("T")


class Line(Generic[T]):
    """One end of the line: what it is given goes out, what is `expected` comes in.

    Any thread may send, one receives.
    """

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO, expected: Any) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._decoder: msgpack.Decoder[T] = msgpack.Decoder(expected)
        self._sending = threading.Lock()

    def send(self, message: Struct) -> None:
        """Send a message. Raises OSError: nobody is at the other end."""
        encoded = msgpack.encode(message)
        with self._sending:
            self._outgoing.write(MAGIC + len(encoded).to_bytes(SIZE_BYTES, "big"))
            self._outgoing.write(encoded)
            self._outgoing.flush()

    def receive(self) -> T | None:
        """Wait for a message, and return it; None when nobody is at the other end any more.

        Raises:
            DecodeError: what came is no message.
        """
        head = self._incoming.read(len(MAGIC) + SIZE_BYTES)
        if not head.startswith(MAGIC[: len(head)]):
            raise DecodeError("what came is no message")
        size = int.from_bytes(head[len(MAGIC) :], "big")
        encoded = self._incoming.read(size)
        is_whole = len(head) == len(MAGIC) + SIZE_BYTES and len(encoded) == size
        return self._decoder.decode(encoded) if is_whole else None
