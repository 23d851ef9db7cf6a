"""The counts of one pass: what its summary, its row in `ingests` and its exit code tell."""

import signal
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from etl.answers.outcome import Answer, Deferred, Missing, Outcome, Postponed, Reject
from etl.archive.store import StoredAnswer
from etl.db.schema import OUTCOMES
from etl.errors import OutOfFilesError
from etl.fetch.permits import Halt
from etl.ledger.lifecycle import State
from etl.ledger.standings import FailedCount
from etl.ledger.verdicts import Recorded


class RunEnd(NamedTuple):
    """How one run ended in a pass: `kind` names the field of `Tally` that counts it."""

    kind: str
    recorded: Recorded


@dataclass
class Tally:
    """The counts of one pass."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    gone: int = 0
    """Archived runs that the API did not have."""
    waiting: int = 0
    failed: int = 0
    rejected: int = 0
    deferred: int = 0
    """Runs left as due as they were, since it was the API that failed."""
    to_retry: int = 0
    """The failed and rejected runs that will be tried again."""
    requests: int = 0
    halt: Halt | None = None
    halt_reason: str = ""
    exit_code: int = 0
    pass_id: int | None = None
    """Its row in `ingests`, which logs name too."""
    standing_failed: Sequence[FailedCount] = ()
    """The runs that stand failed after the pass, whenever that happened."""

    @property
    def done(self) -> int:
        """The number of runs that were fetched, with whatever result."""
        archived = self.new + self.changed + self.unchanged + self.gone
        return archived + self.failed + self.rejected

    def copy(self, other: "Tally") -> None:
        """Take over the values of another tally."""
        for field in fields(other):
            setattr(self, field.name, getattr(other, field.name))

    def summary(self) -> dict[str, Any]:
        """Return the counts for programs."""
        counted = {name: getattr(self, name) for name in (*OUTCOMES, "requests")}
        halted = self.halt.value if self.halt else None
        return {
            **counted,
            "halted": halted,
            "exit_code": self.exit_code,
            "pass_id": self.pass_id,
            "standing_failed": [each._asdict() for each in self.standing_failed],
        }

    def add(self, ends: Iterable[RunEnd]) -> None:
        """Count the ends of runs."""
        counted = Counter((end.kind, end.recorded.standing.state) for end in ends)
        for (kind, state), runs in counted.items():
            setattr(self, kind, getattr(self, kind) + runs)
            if kind in {"failed", "rejected"} and state is State.RETRYING:
                self.to_retry += runs
            if state is State.RUNNING:
                self.waiting += runs
            elif state is State.FAILED and kind in {"new", "changed"}:
                self.failed += runs


def kind_of(outcome: Outcome, saved: Mapping[str, StoredAnswer], recorded: Recorded) -> str:
    """Return the field of `Tally` that counts an outcome."""
    kind = "failed" if recorded.standing.state is State.FAILED else "unchanged"
    match outcome:
        case Answer():
            save = saved[outcome.run_id]
            kind = "new" if save.is_new else "changed" if save.is_changed else "unchanged"
        case Missing() if kind == "unchanged":
            kind = "gone"
        case Reject() | Postponed(reject=Reject()):
            kind = "rejected"
        case Postponed():
            kind = "failed"
        case Deferred():
            kind = "deferred"
    return kind


def exit_code(tally: Tally, interrupted_by: int | None, bad_lines: int) -> int:
    """Return the exit code of a pass; README.md lists them all."""
    match tally.halt:
        case Halt.REFUSED:
            return 3
        case Halt.DOWN | Halt.BUSY:
            return 5
        case Halt.INTERRUPTED:
            return 128 + (interrupted_by or signal.SIGINT)
        case Halt.NO_RESOURCES:
            return OutOfFilesError.exit_code
        case _:
            return 1 if tally.failed or tally.rejected or bad_lines else 0
