"""`show --test`: all results of the tests of one name, oldest first as a strip of letters."""

import textwrap
from typing import Any
from zoneinfo import ZoneInfo

from etl import display
from etl.derived.metrics import WORDS, compute_rates, count_letters
from etl.reports.columns import environments_text
from etl.reports.forms import for_people
from etl.reports.histories import History
from etl.reports.model import Type

LISTED_RUNS = 5
"""How many runs of each history people are shown; JSON has all."""


def as_dict(history: History) -> dict[str, Any]:
    """Return a history for JSON: all its runs, the newest first."""
    counts = count_letters(history.strip)
    return {
        "application": history.variant.application,
        "plan": history.variant.plan,
        "environments": environments_text(history.variant.environment_signature),
        "test": history.test.name,
        "type": history.test.type,
        "strip": history.strip,
        "counts": counts._asdict(),
        **compute_rates(counts)._asdict(),
        "runs": [
            {
                "run_id": result.run_id,
                "started_at": result.started_at,
                "status": WORDS.get(result.letter),
            }
            for result in history.results
        ],
    }


def print_history(history: History, zone: ZoneInfo) -> None:
    """Print a history: its strip and rates, and the newest runs."""
    plan = [history.variant.application or "-", history.variant.plan or "-"]
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
