"""Turn one decoded answer into rows.

Reads no clock, file, network or database: the same answer always gives the same rows, so the
whole archive can be replayed after a rule here changes. A leaf that cannot be read becomes
NULL (or U+FFFD inside a text) and a warning; it never rejects the answer.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, ValidationError, convert

from etl.answers.payload import (
    COUNTER_FIELDS,
    ENVIRONMENT_FIELDS,
    FINAL_STATUSES,
    KNOWN_STATUSES,
    OPEN_STATUS,
    RUN_FIELDS,
    TEST_FIELDS,
    Payload,
    PayloadError,
    encode_canonical,
)
from etl.answers.rows import (
    COUNTERS,
    CountRow,
    Drift,
    EnvironmentRow,
    LeafWarning,
    Rows,
    RunRow,
    TestRow,
)

SMALLEST_INTEGER = -(2**63)
LARGEST_INTEGER = 2**63 - 1
MAX_PATH_BYTES = 500
"""Paths are part of a key, and a key of PostgreSQL has up to 2,704 bytes, run ID included."""


def normalize(run_id: str, payload: Payload, zone: tzinfo) -> Rows:
    """Return the rows of one run; `started_on` is the day in `zone`.

    Raises:
        PayloadError: a field is nested too deeply to be copied.
    """
    try:
        return _build_rows(run_id, payload, zone)
    except RecursionError:
        raise PayloadError("the answer is nested too deeply") from None


def _build_rows(run_id: str, payload: Payload, zone: tzinfo) -> Rows:
    notes = _Notes()
    result = payload.result
    environments = [
        _read_environment(run_id, position, item, notes)
        for position, item in enumerate(result.get("environments", ()), start=1)
    ]
    own = _read_counters(run_id, 0, result.get("results"), "result.results", notes)
    tests, counts = _convert_documented_tests(run_id, payload) or _read_tests(
        run_id, payload, notes
    )
    run = _read_run(payload, environments, len(tests), zone, notes)
    return Rows(
        run, environments, tests, [own, *counts], notes.sorted_warnings(), sorted(notes.drift)
    )


_Integer = Annotated[int, Meta(ge=SMALLEST_INTEGER, le=LARGEST_INTEGER)]


class _DocumentedCounters(Struct, forbid_unknown_fields=True, gc=False):
    failed: _Integer
    passed: _Integer
    aborted: _Integer
    pending: _Integer
    unresolved: _Integer


class _DocumentedTest(Struct, forbid_unknown_fields=True, gc=False):
    id: str
    name: str
    status: Literal["passed", "failed", "aborted", "completed", "unresolved", "pending", ""]
    type: str
    sitemap: str
    results: _DocumentedCounters
    testResultsUrl: str | UnsetType = UNSET  # noqa: N815  the API's name


def _convert_documented_tests(
    run_id: str, payload: Payload
) -> tuple[list[TestRow], list[CountRow]] | None:
    """Return the rows of tests, None unless all of them have exactly the documented shape.

    Such tests give neither warnings nor drift. `_read_tests` is ten times slower.
    """
    if not payload.is_storable:
        return None
    try:
        items = convert(payload.result.get("tests", ()), list[_DocumentedTest])
    except ValidationError:
        return None
    tests, counts = [], []
    for position, test in enumerate(items, start=1):
        url = None if test.testResultsUrl is UNSET else test.testResultsUrl
        texts = (test.id, test.name, test.status, test.type, test.sitemap)
        tests.append(TestRow(run_id, position, *texts, url, None))
        of = test.results
        numbers = (of.failed, of.passed, of.aborted, of.pending, of.unresolved)
        counts.append(CountRow(run_id, position, "test", *numbers, None, _sum_counters(numbers)))
    return tests, counts


def _read_tests(
    run_id: str, payload: Payload, notes: "_Notes"
) -> tuple[list[TestRow], list[CountRow]]:
    tests, counts = [], []
    for position, item in enumerate(payload.result.get("tests", ()), start=1):
        path = f"result.tests[{position - 1}]"
        test = _read_object(item, path, notes)
        tests.append(_read_test(run_id, position, test, notes))
        counts.append(
            _read_counters(run_id, position, test.get("results"), f"{path}.results", notes)
        )
    return tests, counts


class _Notes:
    """Collects warnings and schema drift while the rows are built."""

    def __init__(self) -> None:
        self.drift: set[Drift] = set()
        self._warnings: dict[str, LeafWarning] = {}

    def warn(self, path: str, value: Any, reason: str) -> None:
        path = _to_key(path)
        self._warnings.setdefault(path, LeafWarning(path, _to_ascii_json(value), reason))

    def add_drift(self, path: str, json_type: str) -> None:
        self.drift.add(Drift(_to_key(path), json_type))

    def sorted_warnings(self) -> list[LeafWarning]:
        return sorted(self._warnings.values())


def _read_run(
    payload: Payload,
    environments: list[EnvironmentRow],
    test_count: int,
    zone: tzinfo,
    notes: _Notes,
) -> RunRow:
    result = payload.result
    status = _read_status(result, "result", "result", notes)
    started_at = _read_time(result.get("started_at"), "result.started_at", notes)
    duration_ms = _read_integer(result.get("duration"), "result.duration", notes)
    local_start = _to_zone(started_at, zone)
    started_on = local_start.date() if local_start else None
    is_over = status in FINAL_STATUSES or status == OPEN_STATUS
    return RunRow(
        result_id=_read_text(result.get("id"), "result.id", notes),
        name=_read_text(result.get("name"), "result.name", notes),
        application=_read_text(result.get("application"), "result.application", notes),
        status=status,
        started_at=started_at,
        started_on=started_on,
        iso_date=started_on.isoformat() if started_on else None,
        started_hour=local_start.hour if local_start else None,
        duration_ms=duration_ms,
        ended_at=_compute_end(started_at, duration_ms) if is_over else None,
        environment_count=len(environments),
        test_count=test_count,
        environment_signature=_sign_environments(environments),
        extra=_collect_run_extra(payload, notes),
    )


def _collect_run_extra(payload: Payload, notes: _Notes) -> str | None:
    """Return unknown fields of the run, and under "$" the fields beside `result`, as JSON.

    A field of the run whose own name is "$" (or "$$", ...) gets one more "$".
    """
    own = _collect_extra(payload.result, RUN_FIELDS, "result", "result", notes)
    extra = {name if name.strip("$") or not name else f"{name}$": own[name] for name in own}
    beside = {name: value for name, value in payload.document.items() if name != "result"}
    for name, value in sorted(beside.items()):
        notes.add_drift(name, _name_json_type(value))
    if beside:
        extra["$"] = _clean_value(beside, "$", notes)
    return encode_canonical(extra) if extra else None


def _read_environment(run_id: str, position: int, item: Any, notes: _Notes) -> EnvironmentRow:
    path = f"result.environments[{position - 1}]"
    environment = _read_object(item, path, notes)
    viewport = _read_text(environment.get("viewport"), f"{path}.viewport", notes)
    width, height = _read_viewport_size(viewport, f"{path}.viewport", notes)
    extra = _collect_extra(environment, ENVIRONMENT_FIELDS, path, "result.environments[]", notes)
    return EnvironmentRow(
        run_id,
        position,
        name=_read_text(environment.get("name"), f"{path}.name", notes),
        os=_read_text(environment.get("os"), f"{path}.os", notes),
        viewport=viewport,
        viewport_width=width,
        viewport_height=height,
        device=_read_text(environment.get("device"), f"{path}.device", notes),
        browser=_read_text(environment.get("browser"), f"{path}.browser", notes),
        extra=encode_canonical(extra) if extra else None,
    )


def _read_test(run_id: str, position: int, test: Mapping[str, Any], notes: _Notes) -> TestRow:
    path = f"result.tests[{position - 1}]"
    extra = _collect_extra(test, TEST_FIELDS, path, "result.tests[]", notes)
    return TestRow(
        run_id,
        position,
        test_id=_read_text(test.get("id"), f"{path}.id", notes),
        name=_read_text(test.get("name"), f"{path}.name", notes),
        status=_read_status(test, path, "result.tests[]", notes),
        type=_read_text(test.get("type"), f"{path}.type", notes),
        sitemap=_read_text(test.get("sitemap"), f"{path}.sitemap", notes),
        results_url=_read_text(test.get("testResultsUrl"), f"{path}.testResultsUrl", notes),
        extra=encode_canonical(extra) if extra else None,
    )


def _read_counters(
    run_id: str, test_position: int, item: Any, path: str, notes: _Notes
) -> CountRow:
    """Read one object of counters; `total` sums the documented ones that are known."""
    counters = {} if item is None else _read_object(item, path, notes)
    shape = "result.tests[].results" if test_position else "result.results"
    other = _collect_extra(counters, COUNTER_FIELDS, path, shape, notes)
    known = [_read_integer(counters.get(name), f"{path}.{name}", notes) for name in COUNTERS]
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
        other=encode_canonical(other) if other else None,
        total=_sum_counters([count for count in known if count is not None]),
    )


def _sum_counters(counters: Sequence[int]) -> int | None:
    total = sum(counters)
    return total if counters and SMALLEST_INTEGER <= total <= LARGEST_INTEGER else None


def _sign_environments(environments: Iterable[EnvironmentRow]) -> str:
    """Return the sorted set of (os, browser, device, viewport) as JSON text.

    Leaves out names, which the API can make up.
    """
    identities = {
        encode_canonical(
            [environment.os, environment.browser, environment.device, environment.viewport]
        )
        for environment in environments
    }
    return f"[{','.join(sorted(identities))}]"


_POSITION = re.compile(r"\[\d+\]")


def _read_object(item: Any, path: str, notes: _Notes) -> Mapping[str, Any]:
    if isinstance(item, dict):
        return item
    notes.warn(path, item, "is no object")
    notes.add_drift(_POSITION.sub("[]", path), _name_json_type(item))
    return {}


def _collect_extra(
    item: Mapping[str, Any], known: Mapping[str, type], path: str, shape: str, notes: _Notes
) -> dict[str, Any]:
    """Return the fields that have no column, and add each undocumented field to the drift.

    `path` is the place of the item; `shape` is the same without positions. Sorts by name: the
    answer's order means nothing, yet two names can become equal when cleaned.
    """
    extra = {}
    for name, value in sorted(item.items()):
        expected = known.get(name)
        if type(value) is expected or (value is None and name == "status"):
            continue
        notes.add_drift(f"{shape}.{name}", _name_json_type(value))
        if expected is None:
            place = f"{path}.{name}"
            extra[_clean_text(name, place, notes)] = _clean_value(value, place, notes)
    return extra


def _read_status(item: Mapping[str, Any], path: str, shape: str, notes: _Notes) -> str | None:
    status = _read_text(item.get("status"), f"{path}.status", notes)
    if status not in KNOWN_STATUSES:
        notes.add_drift(f"{shape}.status={status}", "string")
    return status


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _replace_unstorable(text: str) -> str:
    """Replace the characters that no database can store in a text: NUL and lone surrogates."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _clean_text(text: str, path: str, notes: _Notes) -> str:
    if _UNSTORABLE.search(text):
        notes.warn(path, text, "has a NUL or a lone surrogate, kept as U+FFFD")
        return _replace_unstorable(text)
    return text


def _to_key(path: str) -> str:
    return _replace_unstorable(path).encode()[:MAX_PATH_BYTES].decode(errors="ignore")


def _clean_value(value: Any, path: str, notes: _Notes) -> Any:
    if isinstance(value, str):
        return _clean_text(value, path, notes)
    if isinstance(value, dict):
        cleaned = {}
        for name, member in sorted(value.items()):
            place = f"{path}.{name}"
            cleaned[_clean_text(name, place, notes)] = _clean_value(member, place, notes)
        return cleaned
    if isinstance(value, list):
        return [_clean_value(item, f"{path}[{index}]", notes) for index, item in enumerate(value)]
    return value


def _read_text(value: Any, path: str, notes: _Notes) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        notes.warn(path, value, "is no text")
        return None
    return _clean_text(value, path, notes)


def _read_integer(value: Any, path: str, notes: _Notes) -> int | None:
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
    """Return whether `value` is a whole number; one of thousands of digits is a Decimal."""
    if isinstance(value, Decimal):
        return value == value.to_integral_value()
    return isinstance(value, int) and not isinstance(value, bool)


def _read_time(value: Any, path: str, notes: _Notes) -> datetime | None:
    """Read an ISO 8601 time, to the millisecond. Refuse one without a zone, which is ambiguous."""
    text = _read_text(value, path, notes)
    if text is None:
        return None
    try:
        # A text that had to be cleaned is garbled, though Python accepts any separator for the T.
        moment = datetime.fromisoformat(text if text == value else "")
        if moment.tzinfo is None:
            notes.warn(path, value, "has no time zone")
            return None
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        notes.warn(path, value, "is no ISO 8601 time")
        return None
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _to_zone(moment: datetime | None, zone: tzinfo) -> datetime | None:
    """Return a moment in `zone`; None at the ends of the calendar, where it has no day there."""
    try:
        return moment.astimezone(zone) if moment else None
    except OverflowError:
        return None


def _compute_end(started_at: datetime | None, duration_ms: int | None) -> datetime | None:
    if started_at is None or duration_ms is None:
        return None
    try:
        return started_at + timedelta(milliseconds=duration_ms)
    except OverflowError:
        return None


_VIEWPORT = re.compile(r"(\d{1,9})x(\d{1,9})", re.ASCII | re.IGNORECASE)


def _read_viewport_size(
    viewport: str | None, path: str, notes: _Notes
) -> tuple[int, int] | tuple[None, None]:
    if not viewport:
        return None, None
    found = _VIEWPORT.fullmatch(viewport.strip())
    if found is None:
        notes.warn(path, viewport, "is not WIDTHxHEIGHT")
        return None, None
    return int(found[1]), int(found[2])


def _name_json_type(value: Any) -> str:
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


def _to_ascii_json(value: Any) -> str:
    """Return `value` as ASCII JSON, which a text column can store whatever the value contains."""
    if isinstance(value, Decimal | Raw):
        return encode_canonical(value)
    return json.dumps(value, default=encode_canonical, sort_keys=True)
