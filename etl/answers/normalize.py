"""Turn one decoded answer into rows.

Reads no clock, file, network or database: the same answer always gives the same rows, so the
whole archive can be replayed after a rule here changes. A leaf that cannot be read becomes
NULL (or U+FFFD inside a text) and a warning; it never stops the run.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, ValidationError, convert

from etl.answers.payload import (
    COUNTER_FIELDS,
    COUNTERS,
    ENVIRONMENT_FIELDS,
    FINAL_STATUSES,
    KNOWN_STATUSES,
    OPEN_STATUS,
    RUN_FIELDS,
    TEST_FIELDS,
    Payload,
    PayloadError,
    canonical,
)
from etl.answers.rows import CountRow, Drift, EnvironmentRow, Rows, RunRow, TestRow, Warned

SMALLEST_INTEGER = -(2**63)
LARGEST_INTEGER = 2**63 - 1
LONGEST_PATH_BYTES = 500
"""Paths are keys, and a key of PostgreSQL's has 2,704 bytes at most, run ID and all."""


def normalize(run_id: str, payload: Payload, zone: tzinfo) -> Rows:
    """Return the rows of one run; `zone` decides which day `started_on` is.

    Raises:
        PayloadError: a field is nested too deeply to be copied.
    """
    try:
        return _rows(run_id, payload, zone)
    except RecursionError:
        raise PayloadError("the answer is nested too deeply") from None


def _rows(run_id: str, payload: Payload, zone: tzinfo) -> Rows:
    notes = _Notes()
    result = payload.result
    environments = [
        _environment(run_id, position, item, notes)
        for position, item in enumerate(result.get("environments", ()), start=1)
    ]
    own = _count(run_id, 0, result.get("results"), "result.results", notes)
    tests, counts = _plain_tests(run_id, payload) or _tests(run_id, payload, notes)
    run = _run(payload, environments, len(tests), zone, notes)
    return Rows(run, environments, tests, [own, *counts], notes.warnings(), sorted(notes.drift))


_Integer = Annotated[int, Meta(ge=SMALLEST_INTEGER, le=LARGEST_INTEGER)]


class _PlainCounters(Struct, forbid_unknown_fields=True, gc=False):
    failed: _Integer
    passed: _Integer
    aborted: _Integer
    pending: _Integer
    unresolved: _Integer


class _PlainTest(Struct, forbid_unknown_fields=True, gc=False):
    id: str
    name: str
    status: Literal["passed", "failed", "aborted", "completed", "unresolved", "pending", ""]
    type: str
    sitemap: str
    results: _PlainCounters
    testResultsUrl: str | UnsetType = UNSET  # noqa: N815  the API's name


def _plain_tests(run_id: str, payload: Payload) -> tuple[list[TestRow], list[CountRow]] | None:
    """Return the rows of tests that are all as documented, None where one of them is not.

    There is nothing to be noted of them. A short cut past `_tests`, which is ten times slower.
    """
    if not payload.is_storable:
        return None
    try:
        items = convert(payload.result.get("tests", ()), list[_PlainTest])
    except ValidationError:
        return None
    tests, counts = [], []
    for position, test in enumerate(items, start=1):
        url = None if test.testResultsUrl is UNSET else test.testResultsUrl
        tests.append(
            TestRow(
                run_id,
                position,
                test.id,
                test.name,
                test.status,
                test.type,
                test.sitemap,
                url,
                None,
            )
        )
        of = test.results
        numbers = (of.failed, of.passed, of.aborted, of.pending, of.unresolved)
        counts.append(CountRow(run_id, position, "test", *numbers, None, _total(numbers)))
    return tests, counts


def _tests(run_id: str, payload: Payload, notes: "_Notes") -> tuple[list[TestRow], list[CountRow]]:
    tests, counts = [], []
    for position, item in enumerate(payload.result.get("tests", ()), start=1):
        path = f"result.tests[{position - 1}]"
        test = _object(item, path, notes)
        tests.append(_test(run_id, position, test, notes))
        counts.append(_count(run_id, position, test.get("results"), f"{path}.results", notes))
    return tests, counts


class _Notes:
    """Collects, while the rows are made, what could not be read and what is new."""

    def __init__(self) -> None:
        self.drift: set[Drift] = set()
        self._warnings: dict[str, Warned] = {}

    def warn(self, path: str, value: Any, reason: str) -> None:
        path = _as_key(path)
        self._warnings.setdefault(path, Warned(path, _quoted(value), reason))

    def drifted(self, path: str, json_type: str) -> None:
        self.drift.add(Drift(_as_key(path), json_type))

    def warnings(self) -> list[Warned]:
        return sorted(self._warnings.values())


def _run(
    payload: Payload,
    environments: list[EnvironmentRow],
    test_count: int,
    zone: tzinfo,
    notes: _Notes,
) -> RunRow:
    result = payload.result
    status = _status(result, "result", "result", notes)
    started_at = _moment(result.get("started_at"), "result.started_at", notes)
    duration_ms = _integer(result.get("duration"), "result.duration", notes)
    is_over = status in FINAL_STATUSES or status == OPEN_STATUS
    return RunRow(
        result_id=_text(result.get("id"), "result.id", notes),
        name=_text(result.get("name"), "result.name", notes),
        application=_text(result.get("application"), "result.application", notes),
        status=status,
        started_at=started_at,
        started_on=_day(started_at, zone),
        duration_ms=duration_ms,
        ended_at=_ended_at(started_at, duration_ms) if is_over else None,
        environment_count=len(environments),
        test_count=test_count,
        environment_signature=signature(environments),
        extra=_run_extra(payload, notes),
    )


def _run_extra(payload: Payload, notes: _Notes) -> str | None:
    """Keep unknown fields of the run, and under "$" those that stand beside `result`.

    A field of the run that is itself called "$" (or "$$", ...) gets one more.
    """
    own = _extra(payload.result, RUN_FIELDS, "result", "result", notes)
    extra = {name if name.strip("$") or not name else f"{name}$": own[name] for name in own}
    beside = {name: value for name, value in payload.document.items() if name != "result"}
    for name, value in sorted(beside.items()):
        notes.drifted(name, _json_type(value))
    if beside:
        extra["$"] = _cleaned_deeply(beside, "$", notes)
    return canonical(extra) if extra else None


def _environment(run_id: str, position: int, item: Any, notes: _Notes) -> EnvironmentRow:
    path = f"result.environments[{position - 1}]"
    environment = _object(item, path, notes)
    viewport = _text(environment.get("viewport"), f"{path}.viewport", notes)
    width, height = _viewport_size(viewport, f"{path}.viewport", notes)
    extra = _extra(environment, ENVIRONMENT_FIELDS, path, "result.environments[]", notes)
    return EnvironmentRow(
        run_id,
        position,
        name=_text(environment.get("name"), f"{path}.name", notes),
        os=_text(environment.get("os"), f"{path}.os", notes),
        viewport=viewport,
        viewport_width=width,
        viewport_height=height,
        device=_text(environment.get("device"), f"{path}.device", notes),
        browser=_text(environment.get("browser"), f"{path}.browser", notes),
        extra=canonical(extra) if extra else None,
    )


def _test(run_id: str, position: int, test: Mapping[str, Any], notes: _Notes) -> TestRow:
    path = f"result.tests[{position - 1}]"
    extra = _extra(test, TEST_FIELDS, path, "result.tests[]", notes)
    return TestRow(
        run_id,
        position,
        test_id=_text(test.get("id"), f"{path}.id", notes),
        name=_text(test.get("name"), f"{path}.name", notes),
        status=_status(test, path, "result.tests[]", notes),
        type=_text(test.get("type"), f"{path}.type", notes),
        sitemap=_text(test.get("sitemap"), f"{path}.sitemap", notes),
        results_url=_text(test.get("testResultsUrl"), f"{path}.testResultsUrl", notes),
        extra=canonical(extra) if extra else None,
    )


def _count(run_id: str, test_position: int, item: Any, path: str, notes: _Notes) -> CountRow:
    """Read one object of counters; `total` sums the five that are documented, as far as known."""
    counters = {} if item is None else _object(item, path, notes)
    shape = "result.tests[].results" if test_position else "result.results"
    other = _extra(counters, COUNTER_FIELDS, path, shape, notes)
    known = [_integer(counters.get(name), f"{path}.{name}", notes) for name in COUNTERS]
    failed, passed, aborted, pending, unresolved = known
    return CountRow(
        run_id,
        test_position,
        "test" if test_position else "run",
        failed,
        passed,
        aborted,
        pending,
        unresolved,
        other=canonical(other) if other else None,
        total=_total([count for count in known if count is not None]),
    )


def _total(counters: Sequence[int]) -> int | None:
    total = sum(counters)
    return total if counters and SMALLEST_INTEGER <= total <= LARGEST_INTEGER else None


def signature(environments: Iterable[EnvironmentRow]) -> str:
    """Return the sorted set of (os, browser, device, viewport) as JSON text.

    Names are left out, since the API can make them up (METRICS, "What the API does not tell").
    """
    identities = {
        canonical([environment.os, environment.browser, environment.device, environment.viewport])
        for environment in environments
    }
    return f"[{','.join(sorted(identities))}]"


_POSITION = re.compile(r"\[\d+\]")


def _object(item: Any, path: str, notes: _Notes) -> Mapping[str, Any]:
    if isinstance(item, dict):
        return item
    notes.warn(path, item, "is no object")
    notes.drifted(_POSITION.sub("[]", path), _json_type(item))
    return {}


def _extra(
    item: Mapping[str, Any], known: Mapping[str, type], path: str, shape: str, notes: _Notes
) -> dict[str, Any]:
    """Return the fields that have no column, and note all that was not known to be sent.

    `path` is where the item stands; `shape` is the same without positions. Goes by the names'
    order, since the answer's means nothing, but two names can become one when cleaned.
    """
    extra = {}
    for name, value in sorted(item.items()):
        expected = known.get(name)
        if type(value) is expected or (value is None and name == "status"):
            continue
        notes.drifted(f"{shape}.{name}", _json_type(value))
        if expected is None:
            place = f"{path}.{name}"
            extra[_storable(name, place, notes)] = _cleaned_deeply(value, place, notes)
    return extra


def _status(item: Mapping[str, Any], path: str, shape: str, notes: _Notes) -> str | None:
    status = _text(item.get("status"), f"{path}.status", notes)
    if status not in KNOWN_STATUSES:
        notes.drifted(f"{shape}.status={status}", "string")
    return status


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _cleaned(text: str) -> str:
    """Return `text` without what no database keeps in a text: NUL and lone surrogates."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _storable(text: str, path: str, notes: _Notes) -> str:
    if _UNSTORABLE.search(text):
        notes.warn(path, text, "has a NUL or a lone surrogate, kept as U+FFFD")
        return _cleaned(text)
    return text


def _as_key(path: str) -> str:
    return _cleaned(path).encode()[:LONGEST_PATH_BYTES].decode(errors="ignore")


def _cleaned_deeply(value: Any, path: str, notes: _Notes) -> Any:
    if isinstance(value, str):
        return _storable(value, path, notes)
    if isinstance(value, dict):
        cleaned = {}
        for name, member in sorted(value.items()):
            place = f"{path}.{name}"
            cleaned[_storable(name, place, notes)] = _cleaned_deeply(member, place, notes)
        return cleaned
    if isinstance(value, list):
        return [
            _cleaned_deeply(item, f"{path}[{index}]", notes) for index, item in enumerate(value)
        ]
    return value


def _text(value: Any, path: str, notes: _Notes) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        notes.warn(path, value, "is no text")
        return None
    return _storable(value, path, notes)


def _integer(value: Any, path: str, notes: _Notes) -> int | None:
    if value is None:
        return None
    if not _is_whole(value):
        notes.warn(path, value, "is no whole number")
        return None
    if not SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
        notes.warn(path, value, "does not fit in 64 bits")
        return None
    return int(value)


def _is_whole(value: Any) -> bool:
    """Tell whether `value` is an integer; one of thousands of digits is a Decimal."""
    if isinstance(value, Decimal):
        return value == value.to_integral_value()
    return isinstance(value, int) and not isinstance(value, bool)


def _moment(value: Any, path: str, notes: _Notes) -> datetime | None:
    """Read an ISO 8601 time, to the millisecond. One without a zone could be any: refused."""
    text = _text(value, path, notes)
    if text is None:
        return None
    try:
        # One that had to be cleaned is garbled, though Python takes any separator for a T.
        moment = datetime.fromisoformat(text if text == value else "")
        if moment.tzinfo is None:
            notes.warn(path, value, "has no time zone")
            return None
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        notes.warn(path, value, "is no ISO 8601 time")
        return None
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _day(moment: datetime | None, zone: tzinfo) -> date | None:
    try:
        return moment.astimezone(zone).date() if moment else None
    except OverflowError:
        return None


def _ended_at(started_at: datetime | None, duration_ms: int | None) -> datetime | None:
    if started_at is None or duration_ms is None:
        return None
    try:
        return started_at + timedelta(milliseconds=duration_ms)
    except OverflowError:
        return None


_VIEWPORT = re.compile(r"(\d{1,9})x(\d{1,9})", re.ASCII | re.IGNORECASE)


def _viewport_size(
    viewport: str | None, path: str, notes: _Notes
) -> tuple[int, int] | tuple[None, None]:
    if not viewport:
        return None, None
    found = _VIEWPORT.fullmatch(viewport.strip())
    if found is None:
        notes.warn(path, viewport, "is not WIDTHxHEIGHT")
        return None, None
    return int(found[1]), int(found[2])


def _json_type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float() | Decimal() | Raw():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _quoted(value: Any) -> str:
    """Return `value` as JSON in ASCII, so that what a column cannot hold is still told."""
    if isinstance(value, Decimal | Raw):
        return canonical(value)
    return json.dumps(value, default=canonical, sort_keys=True)
