"""`show --test`: all results of the tests of one name, oldest first as a strip of letters."""

import textwrap
from collections.abc import Collection, Sequence
from typing import Any
from zoneinfo import ZoneInfo

from etl import display
from etl.derived.metrics import compute_rates, count_letters
from etl.derived.plans import Plan, environments_text
from etl.reports.forms import for_people
from etl.reports.histories import History
from etl.reports.model import Type

LISTED_RUNS = 5
"""How many runs of each history people are shown; JSON has all."""


def choose_names(sources: Collection[str]) -> Sequence[str]:
    """Return the names of a plan to show: with its account only if there are several."""
    return Plan._fields if len(sources) > 1 else Plan._fields[1:]


def as_dict(history: History, names: Sequence[str]) -> dict[str, Any]:
    """Return a history for JSON: the `names` of its plan, all its runs, the newest first."""
    counts = count_letters(history.strip)
    return {
        **{name: getattr(history.variant, name) for name in names},
        "environments": environments_text(history.variant.environment_signature),
        "test": history.test.name,
        "type": history.test.type,
        "test_id": history.test.test_id,
        "strip": history.strip,
        "counts": counts._asdict(),
        **compute_rates(counts)._asdict(),
        "runs": [
            {
                "run_id": result.run_id,
                "started_at": result.started_at,
                "status": result.status,
            }
            for result in history.results
        ],
    }


def print_history(history: History, names: Sequence[str], zone: ZoneInfo) -> None:
    """Print a history: the `names` of its plan, its strip and rates, and the newest runs."""
    plan = [getattr(history.variant, name) or "-" for name in names]
    environments = environments_text(history.variant.environment_signature)
    counts = count_letters(history.strip)
    found = compute_rates(counts)
    rate, share = (
        for_people(each, Type.RATE, zone) for each in (found.pass_rate, found.decided_share)
    )
    for line in (
        " / ".join([*plan, history.test.name or "-"]),
        environments,
        history.strip,
        f"{counts.passed} passed, {counts.failed} failed: pass rate {rate}, decided {share}",
    ):
        display.say(textwrap.fill(display.safe(line), display.WIDTH))
    newest = [
        (for_people(result.started_at, Type.MOMENT, zone), result.letter, result.run_id)
        for result in history.results[:LISTED_RUNS]
    ]
    display.table(["started_at", "result", "run_id"], newest)
    display.say()
