"""The lines that tell how a pass ended: a text for people, the same facts as JSON for programs."""

from collections import Counter
from collections.abc import Sequence

from etl.fetch.permits import Halt
from etl.ingest.tally import Tally
from etl.ledger.standings import FailedCount
from etl.telemetry.log import get_logger

log = get_logger()


def log_halt(tally: Tally) -> None:
    """Log why the pass stopped before its work was done, if it did."""
    if tally.halt is not None:
        reason = _describe_halt(tally.halt, tally.halt_reason)
        log.error("pass stopped early", halted=tally.halt, reason=reason, text=f"error: {reason}")


def log_counts(tally: Tally) -> None:
    """Log the counts of the pass, and the runs that stand failed after it."""
    log.info("pass finished", **tally.summary(), text=_describe_counts(tally))
    if tally.standing_failed:
        by_reason = _count_reasons(tally.standing_failed)
        log.warning("runs given up", by_reason=by_reason, text=_describe_failed(by_reason))


def _describe_counts(tally: Tally) -> str:
    gone = f" {tally.gone} gone," if tally.gone else ""
    return (
        f"{tally.new} new, {tally.changed} changed, {tally.unchanged} unchanged,{gone}"
        f" {tally.waiting} still going, {tally.failed} failed, {tally.rejected} rejected"
        f" ({tally.requests} request{'' if tally.requests == 1 else 's'})"
    )


def _describe_failed(by_reason: Counter[str]) -> str:
    reasons = ", ".join(f"{runs} {reason}" for reason, runs in sorted(by_reason.items()))
    return (
        f"runs given up, now and before: {by_reason.total()} ({reasons});"
        " `result-archiver status --failed` lists them"
    )


def _count_reasons(counts: Sequence[FailedCount]) -> Counter[str]:
    by_reason = Counter[str]()
    for each in counts:
        by_reason[each.reason] += each.runs
    return by_reason


def _describe_halt(halt: Halt, reason: str) -> str:
    match halt:
        case Halt.REFUSED | Halt.NO_RESOURCES:
            return f"{reason}; due runs stay due"
        case Halt.INTERRUPTED:
            return f"interrupted by {reason}; due runs stay due"
        case Halt.BUSY:
            return f"{reason}, longer than api.max_wait_s; due runs stay due"
        case Halt.DOWN:
            return f"no results from the API: {reason}; due runs stay due"
