"""`statuses`: all words that the API sent as a status, those too that nothing counts."""

from collections import Counter
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Subquery,
    Text,
    and_,
    func,
    select,
)

from etl.db.schema import outcomes, plan_variants
from etl.derived.metrics import LETTERS
from etl.reports.model import OF_RUNS, Column, Definition, ReportData, ReportRequest, Type
from etl.reports.selection import load_query, request_conditions, valid_condition
from etl.reports.spans import describe_requested

UNKNOWN = "unknown"
COUNTED_AS = {
    "passed": "decided",
    "failed": "decided",
    "unresolved": "open",
    "aborted": "broken off",
    "pending": "unfinished",
}


def _statuses(connection: Connection, request: ReportRequest) -> ReportData:
    sums = [func.sum(outcomes.c[f"tests_{word}"]) for word in (*LETTERS, UNKNOWN)]
    statement = _of_chosen(select(outcomes.c.status, func.count(), *sums), request)
    found: Counter[tuple[str, str | None]] = Counter()
    unknown = 0
    for status, runs, *tests in connection.execute(statement.group_by(outcomes.c.status)):
        found["run", status or None] += runs  # an empty word is no word
        found.update({("test", word): int(n) for word, n in zip(LETTERS, tests, strict=False)})
        unknown += int(tests[-1])
    if unknown:
        for word, tests_with_it in connection.execute(_unknown(request)):
            found["test", word or None] += tests_with_it
    rows = ((*word, COUNTED_AS.get(word[1] or ""), n) for word, n in found.items() if n)
    return ReportData(rows, describe_requested(request))


def read_unknown_words(
    connection: Connection, request: ReportRequest, run_id: str
) -> dict[int, str | None]:
    """Return the words of a run's tests that are not documented, by position."""
    words = _select_words()
    query = (
        select(words.c.position, words.c.status)
        .select_from(outcomes)
        .join(words, _is_of_outcome(words))
        .where(outcomes.c.run_id == run_id, words.c.run_id == run_id, valid_condition(request))
    )
    return {position: word for position, word in connection.execute(query) if word not in LETTERS}


def _unknown(request: ReportRequest) -> Select[Any]:
    words = _select_words()
    return (
        _of_chosen(select(words.c.status, func.count()), request)
        .join(words, _is_of_outcome(words))
        .where(words.c.status.is_(None) | words.c.status.not_in(LETTERS))
        .group_by(words.c.status)
    )


def _select_words() -> Subquery:
    columns = {"run_id": Text, "revision": BigInteger, "position": BigInteger, "status": Text}
    return load_query("unknown_words").columns(**columns).subquery("words")


def _is_of_outcome(words: Subquery) -> ColumnElement[bool]:
    return and_(words.c.run_id == outcomes.c.run_id, words.c.revision == outcomes.c.revision)


def _of_chosen(statement: Select[Any], request: ReportRequest) -> Select[Any]:
    """Limit `statement` to the rows of `outcomes` that are asked for."""
    of_plan = plan_variants.c.variant_id == outcomes.c.variant_id
    return (
        statement.select_from(outcomes)
        .join(plan_variants, of_plan)
        .where(*request_conditions(request))
    )


REPORTS = (
    Definition(
        "statuses",
        "Words that the API sent as a status",
        "a word, of runs or of tests",
        (
            Column("of", Type.TEXT, "run or test"),
            Column("status", Type.TEXT, "The word, missing where there was none"),
            Column("counted_as", Type.TEXT, "decided, open, ...; missing: listed, never counted"),
            Column("results", Type.INTEGER, "How many have it"),
        ),
        ("of", "status", "counted_as", "results"),
        ("of", "-results", "status"),
        OF_RUNS,
        _statuses,
    ),
)
