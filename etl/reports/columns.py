"""Columns that several reports have, each described once."""

from etl.answers.rows import COUNTERS
from etl.reports.model import Column, Type

SOURCE = Column("source", Type.TEXT, "The account: default, or the NAME of [sources.NAME]")
APPLICATION = Column("application", Type.TEXT, "The application's name")
PLAN = Column("plan", Type.TEXT, "The plan's name")
TEST = Column("test", Type.TEXT, "The test's name")
ENVIRONMENTS = Column(
    "environments",
    Type.TEXT,
    "The run's environments: OS, browser, device and viewport of each",
)
RUN_ID = Column("run_id", Type.TEXT, "The run")

_COUNTED = {
    "failed": "Results that are failed",
    "passed": "Results that are passed",
    "aborted": "Results that are aborted",
    "pending": "Results that are pending",
    "unresolved": "Results that wait for a person",
}
COUNTS = tuple(Column(name, Type.INTEGER, _COUNTED[name]) for name in COUNTERS)
UNKNOWN = Column("unknown", Type.INTEGER, "Results with a word that is not documented")
CHECKS = tuple(
    Column(f"checks_{name}", Type.INTEGER, f"The API's counter of checks: {name}")
    for name in COUNTERS
)
CHECK_PASS_RATE = Column(
    "check_pass_rate", Type.RATE, "checks_passed / (checks_passed + checks_failed)"
)
RATES = (
    Column("pass_rate", Type.RATE, "passed / (passed + failed)"),
    Column("pass_rate_strict", Type.RATE, "passed / (passed + failed + aborted + unresolved)"),
    Column("decided_share", Type.RATE, "(passed + failed) / all results with a documented word"),
    Column("pass_rate_low", Type.RATE, "The pass rate if all that is open turns out failed"),
    Column("pass_rate_high", Type.RATE, "The pass rate if all that is open turns out passed"),
)
