"""The messages between a pass and the threads or the process that fetches for it.

A pull protocol: the fetching side asks for targets and for permits to send requests, and the pass
gives them; it sends a batch, and the pass says when that is committed, which is the credit for the
next one. Messages are msgpack with a type for each field: input is checked, and never executed. API
keys are not among them: each process reads them from where they are kept.
"""

from msgspec import Raw, Struct, msgpack

from etl.answers.outcome import Outcome, Target
from etl.config.settings import Config
from etl.fetch.permits import Halt, PermitAsk, Permits
from etl.fetch.rate_limit import RequestLimits


class BatchSize(Struct, array_like=True, frozen=True):
    """A batch is full with `runs` or `size_bytes`, and sent after `wait_s` even if it is not."""

    runs: int = 250
    size_bytes: int = 640 * 1024
    wait_s: float = 1.0


class Begin(Struct, array_like=True, frozen=True, tag=True):
    """Fetch for a pass of about `due` runs. `batches` may be fetched and not yet committed.

    Targets are asked for when at most `low_mark` of one of the `sources` wait. `controls` are
    archived runs, one a source, that tell an API that is down from runs that fail.
    `clock_ahead_s` corrects the clock of a child process.
    """

    config: Config
    limits: RequestLimits
    due: int
    batches: int
    low_mark: int = 500
    sources: int = 1
    clock_ahead_s: float = 0
    controls: dict[str, Target] = {}
    size: BatchSize = BatchSize()


class TargetAsk(Struct, array_like=True, frozen=True):
    """Give up to `count` targets, `without` those of sources that need none.

    `dropped` are the run IDs of targets that will not be fetched.
    """

    count: int
    without: list[str]
    dropped: list[str] = []


class Ask(Struct, array_like=True, frozen=True, tag=True):
    """The demands of the fetching side: for targets, for permits, or for both."""

    targets: TargetAsk | None = None
    permits: PermitAsk | None = None


class Give(Struct, array_like=True, frozen=True, tag=True):
    """The answer to a demand. `targets` [] says that no more are due of the sources asked for.

    `drops_waiting`: the leases of the targets that wait to be fetched have expired, so that others
    may have them.
    """

    targets: list[Target] | None = None
    permits: Permits | None = None
    drops_waiting: bool = False


class End(Struct, array_like=True, frozen=True):
    """How the fetching ended: `halt` decides the pass's exit code."""

    halt: Halt | None
    halt_reason: str


class Batch(Struct, array_like=True, frozen=True, tag=True):
    """Outcomes to be committed together, packed, and their number. The last batch has `end`."""

    packed: Raw
    count: int
    requests: int
    end: End | None = None


class Done(Struct, array_like=True, frozen=True, tag=True):
    """A batch is committed."""


def unpack(batch: Batch) -> list[Outcome]:
    """Return the outcomes of a batch."""
    return _OUTCOMES.decode(batch.packed)


_OUTCOMES = msgpack.Decoder(list[Outcome])
