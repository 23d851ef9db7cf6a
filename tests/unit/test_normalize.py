import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.answers.normalize import normalize
from etl.answers.payload import PayloadError, decode
from etl.answers.rows import CountRow, Drift, EnvironmentRow, LeafWarning, Rows, RunRow
from etl.answers.rows import TestRow as RowOfTest  # pytest collects what is named Test...

SAMPLE = (Path(__file__).parents[1] / "samples" / "result.json").read_bytes()
REPLACED = "\N{REPLACEMENT CHARACTER}"
LARGEST, SMALLEST = 2**63 - 1, -(2**63)

Keys = tuple[str | int, ...]


def sample() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(SAMPLE)["result"]
    return result


def rows_of(result: Any, **beside: Any) -> Rows:
    """Return the rows of an answer with this `result`, read as UTC days."""
    return normalize("run-1", decode(json.dumps({"result": result, **beside}).encode()), UTC)


def with_number(keys: Keys, text: str) -> Rows:
    """Return the sample's rows with the JSON number `text` at `keys`."""
    body = json.dumps({"result": placed(keys, "<number>")}).replace('"<number>"', text)
    return normalize("run-1", decode(body.encode()), UTC)


def placed(keys: Keys, value: Any) -> dict[str, Any]:
    """Return the sample with `value` at `keys`."""
    result = sample()
    place: Any = result
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = deepcopy(value)
    return result


def turned_round(value: Any) -> Any:
    """Return `value` with the keys of each object in the opposite order."""
    if isinstance(value, dict):
        return {name: turned_round(member) for name, member in reversed(value.items())}
    return [turned_round(item) for item in value] if isinstance(value, list) else value


def path_of(keys: Keys) -> str:
    return "result" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)


def warned_paths(rows: Rows) -> set[str]:
    return {warned.path for warned in rows.warnings}


def cleaned(text: str) -> str:
    return "".join(REPLACED if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)


def test_the_sample_gives_exactly_these_rows() -> None:
    rows = normalize("run-1", decode(SAMPLE), UTC)
    assert rows == Rows(
        run=RunRow(
            result_id="ac247a18-75d5-4094-8ab3-56788d6d2ff9",
            name=" plan",
            application=" app",
            status="failed",
            started_at=datetime(2023, 10, 24, 13, 0, 12, 463000, UTC),
            started_on=date(2023, 10, 24),
            iso_date="2023-10-24",
            started_hour=13,
            duration_ms=228669,
            ended_at=datetime(2023, 10, 24, 13, 4, 1, 132000, UTC),
            environment_count=3,
            test_count=1,
            environment_signature=(
                '[["Linux","Chrome","Desktop","1440x900"],'
                '["Linux","Chrome","Desktop","1442x3227"],'
                '["Linux","Firefox","Desktop","690x490"]]'
            ),
            extra=None,
        ),
        environments=[
            EnvironmentRow(
                run_id="run-1",
                position=1,
                name="env-name_lvc0ei",
                os="Linux",
                viewport="1442x3227",
                viewport_width=1442,
                viewport_height=3227,
                device="Desktop",
                browser="Chrome",
                extra=None,
            ),
            EnvironmentRow(
                run_id="run-1",
                position=2,
                name="firefox_ltr6xexec",
                os="Linux",
                viewport="690x490",
                viewport_width=690,
                viewport_height=490,
                device="Desktop",
                browser="Firefox",
                extra=None,
            ),
            EnvironmentRow(
                run_id="run-1",
                position=3,
                name="Chrome",
                os="Linux",
                viewport="1440x900",
                viewport_width=1440,
                viewport_height=900,
                device="Desktop",
                browser="Chrome",
                extra=None,
            ),
        ],
        tests=[
            RowOfTest(
                run_id="run-1",
                position=1,
                test_id="fcc41ac2-95e6-4fed-93d1-c609483300e4",
                name="",
                status="failed",
                type="sitemap_test",
                sitemap="",
                results_url=None,
                extra=None,
            ),
        ],
        counts=[
            CountRow("run-1", 0, "run", 3, 12, 0, 0, 0, other=None, total=15),
            CountRow("run-1", 1, "test", 3, 12, 0, 0, 0, other=None, total=15),
        ],
        warnings=[],
        drift=[],
    )


def test_an_empty_result_is_a_run_of_which_nothing_is_known() -> None:
    assert rows_of({}) == Rows(
        RunRow(None, None, None, None, None, None, None, None, None, None, 0, 0, "[]", None),
        environments=[],
        tests=[],
        counts=[CountRow("run-1", 0, "run", None, None, None, None, None, None, None)],
        warnings=[],
        drift=[],
    )


def test_a_test_can_carry_its_url() -> None:
    rows = rows_of(placed(("tests", 0, "testResultsUrl"), "https://api.test/1"))
    assert rows.tests[0].results_url == "https://api.test/1"
    assert (rows.warnings, rows.drift) == ([], [])


def test_the_run_id_is_the_one_asked_for() -> None:
    rows = rows_of(sample())
    assert {row[0] for row in [*rows.environments, *rows.tests, *rows.counts]} == {"run-1"}


def test_what_is_alike_is_not_merged() -> None:
    result = sample()
    result["tests"] *= 2
    result["environments"] *= 2
    rows = rows_of(result)
    assert [test.position for test in rows.tests] == [1, 2]
    assert rows.tests[0].test_id == rows.tests[1].test_id
    assert [environment.position for environment in rows.environments] == [1, 2, 3, 4, 5, 6]
    assert [count.test_position for count in rows.counts] == [0, 1, 2]


class Leaf(NamedTuple):
    """A known place in an answer, and the column that it is read into."""

    keys: Keys
    column: Callable[[Rows], Any]


def of_the_run(key: str, column: str) -> Leaf:
    return Leaf((key,), lambda rows: getattr(rows.run, column))


def of_an_environment(key: str) -> Leaf:
    return Leaf(("environments", 1, key), lambda rows: getattr(rows.environments[1], key))


def of_a_test(key: str, column: str) -> Leaf:
    return Leaf(("tests", 0, key), lambda rows: getattr(rows.tests[0], column))


def counter(keys: Keys, position: int, name: str) -> Leaf:
    return Leaf((*keys, "results", name), lambda rows: getattr(rows.counts[position], name))


COUNTERS = ("failed", "passed", "aborted", "pending", "unresolved")
TEXTS = [
    of_the_run("id", "result_id"),
    of_the_run("name", "name"),
    of_the_run("application", "application"),
    of_the_run("status", "status"),
    of_an_environment("name"),
    of_an_environment("os"),
    of_an_environment("device"),
    of_an_environment("browser"),
    of_a_test("id", "test_id"),
    of_a_test("name", "name"),
    of_a_test("status", "status"),
    of_a_test("type", "type"),
    of_a_test("sitemap", "sitemap"),
    of_a_test("testResultsUrl", "results_url"),
]
INTEGERS = [
    of_the_run("duration", "duration_ms"),
    *(counter((), 0, name) for name in COUNTERS),
    *(counter(("tests", 0), 1, name) for name in COUNTERS),
]
STARTED_AT = of_the_run("started_at", "started_at")
VIEWPORT = of_an_environment("viewport")
OBJECTS: list[Keys] = [
    ("results",), ("tests", 0), ("tests", 0, "results"), ("environments", 0), ("environments", 2),
]  # fmt: skip

texts = (
    st.text(st.sampled_from("a1 x-:TZ\0\ud800\udfffé\U0001f600"), max_size=8) | st.text(max_size=8)
).map(lambda text: str(json.loads(json.dumps(text))))  # two halves beside each other are one
numbers = (
    st.integers()
    | st.integers(LARGEST - 1, LARGEST + 1)
    | st.integers(SMALLEST - 1, SMALLEST + 1)
    | st.sampled_from([10**25, -(10**4299)])
    | st.floats(allow_nan=False, allow_infinity=False)
)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(TEXTS), json_values)
@settings(max_examples=200)
def test_a_text_is_read_or_warned_of(leaf: Leaf, value: Any) -> None:
    rows = rows_of(placed(leaf.keys, value))
    readable = cleaned(value) if isinstance(value, str) else None
    assert leaf.column(rows) == readable
    assert (path_of(leaf.keys) in warned_paths(rows)) == (value != readable)


@given(st.sampled_from(INTEGERS), json_values)
@settings(max_examples=200)
def test_an_integer_is_read_or_warned_of(leaf: Leaf, value: Any) -> None:
    rows = rows_of(placed(leaf.keys, value))
    readable = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        exact = Fraction(repr(value))
        readable = int(exact) if exact.denominator == 1 and SMALLEST <= exact <= LARGEST else None
    assert leaf.column(rows) == readable
    is_warned = path_of(leaf.keys) in warned_paths(rows)
    assert is_warned == (readable is None and value is not None)


@given(json_values)
@settings(max_examples=100)
def test_a_time_is_read_or_warned_of(value: Any) -> None:
    rows = rows_of(placed(STARTED_AT.keys, value))
    is_warned = "result.started_at" in warned_paths(rows)
    assert is_warned == (rows.run.started_at is None and value is not None)


@given(json_values)
@settings(max_examples=100)
def test_a_viewport_is_read_or_warned_of(value: Any) -> None:
    rows = rows_of(placed(VIEWPORT.keys, value))
    assert VIEWPORT.column(rows) == (cleaned(value) if isinstance(value, str) else None)
    is_warned = path_of(VIEWPORT.keys) in warned_paths(rows)
    is_unread = rows.environments[1].viewport_width is None and value not in (None, "")
    assert is_warned == is_unread


@given(st.sampled_from(OBJECTS), json_values)
@settings(max_examples=100)
def test_what_should_be_an_object_is_one_or_warned_of(keys: Keys, value: Any) -> None:
    rows = rows_of(placed(keys, value))
    is_missing = value is None and keys[-1] == "results"
    is_warned = path_of(keys) in warned_paths(rows)
    assert is_warned == (not isinstance(value, dict) and not is_missing)


@pytest.mark.parametrize(
    ("keys", "number", "reason"),
    [
        (("duration",), "1.5", "is no whole number"),
        (("duration",), "1e-999", "is no whole number"),
        (("duration",), "9223372036854775808", "does not fit in 64 bits"),
        (("duration",), "-9223372036854775809", "does not fit in 64 bits"),
        (("duration",), "1E+9999", "does not fit in 64 bits"),
        (("duration",), "7" * 6000, "does not fit in 64 bits"),
        (("tests", 0, "results", "failed"), "-1E+9999", "does not fit in 64 bits"),
        (("duration",), "1e99999999999999999999", "is no whole number"),
        (("name",), "1E+9999", "is no text"),
        (("name",), "1e99999999999999999999", "is no text"),
        (("results",), "7", "is no object"),
    ],
    ids=lambda part: str(part)[:30],
)
def test_a_warning_tells_where_what_and_why(keys: Keys, number: str, reason: str) -> None:
    warnings = with_number(keys, number).warnings
    (warned,) = [warned for warned in warnings if warned.path == path_of(keys)]
    assert (warned.value.upper(), warned.reason) == (number.upper(), reason)


def test_a_warning_quotes_the_huge_numbers_in_a_value() -> None:
    (warned,) = with_number(("name",), "[1e9999, 1e99999999999999999999]").warnings
    assert warned.value == '["1E+9999", "1e99999999999999999999"]'


@pytest.mark.parametrize("number", [LARGEST, SMALLEST])
def test_the_ends_of_64_bits_fit(number: int) -> None:
    rows = rows_of(placed(("duration",), number))
    assert (rows.run.duration_ms, rows.warnings) == (number, [])


@pytest.mark.parametrize("text", ["228669.0", "2.28669e5", "228669"])
def test_a_whole_number_is_read_however_it_is_spelled(text: str) -> None:
    assert with_number(("duration",), text) == rows_of(sample())


@pytest.mark.parametrize("character", ["\0", "\ud800"])
def test_what_no_database_keeps_in_a_text_is_replaced_and_warned_of(character: str) -> None:
    rows = rows_of(placed(("name",), f"a{character}b"))
    assert rows.run.name == f"a{REPLACED}b"
    assert rows.warnings == [
        LeafWarning(
            "result.name",
            json.dumps(f"a{character}b"),
            "has a NUL or a lone surrogate, kept as U+FFFD",
        )
    ]


def test_an_element_that_is_no_object_keeps_its_position() -> None:
    result = sample()
    result["tests"] = [5, *result["tests"]]
    result["environments"] = [None]
    rows = rows_of(result)
    assert rows.tests[0] == RowOfTest("run-1", 1, *[None] * 7)
    assert rows.tests[1].test_id == "fcc41ac2-95e6-4fed-93d1-c609483300e4"
    assert rows.counts[1] == CountRow("run-1", 1, "test", *[None] * 7)
    assert rows.environments == [EnvironmentRow("run-1", 1, *[None] * 8)]
    assert (rows.run.test_count, rows.run.environment_count) == (2, 1)
    assert rows.warnings == [
        LeafWarning("result.environments[0]", "null", "is no object"),
        LeafWarning("result.tests[0]", "5", "is no object"),
    ]


def test_a_field_nested_too_deeply_is_a_payload_error() -> None:
    deep = b'{"result":{"new":' + b"[" * 900 + b"]" * 900 + b"}}"
    with pytest.raises(PayloadError, match="nested too deeply"):
        normalize("run-1", decode(deep), UTC)


# Whatever the frame holds, its rows can be stored.

fields = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("id", "name", "status", "started_at", "duration"), json_values),
        "results": json_values | st.dictionaries(st.sampled_from(["failed", "new"]), json_values),
        "viewport": json_values,
        "testResultsUrl": json_values,
        "\0": json_values,
    },
)
frames = st.builds(
    lambda result, tests, environments, beside: {
        "result": {**result, "tests": tests, "environments": environments},
        **beside,
    },
    fields,
    st.lists(fields | json_values, max_size=2),
    st.lists(fields | json_values, max_size=2),
    st.dictionaries(texts.filter(lambda name: name != "result"), json_values, max_size=2),
)


def cells(rows: Rows) -> Iterator[Any]:
    yield from rows.run
    for table in rows[1:]:
        for row in table:
            yield from row


def texts_in(value: Any) -> Iterator[str]:
    """Return the texts among `value`, the keys and those inside of JSON included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, member in value.items():
            yield name
            yield from texts_in(member)
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)


def extras(rows: Rows) -> Iterator[Any]:
    """Return what the JSON columns hold, decoded."""
    found = [rows.run.extra, *(row.extra for row in rows.environments)]
    found += [*(row.extra for row in rows.tests), *(row.other for row in rows.counts)]
    return (json.loads(text) for text in found if text is not None)


@given(frames)
@settings(max_examples=200)
def test_whatever_is_accepted_can_be_stored(frame: dict[str, Any]) -> None:
    rows = normalize("run-1", decode(json.dumps(frame).encode()), UTC)
    values = list(cells(rows))
    for text in [text for value in [*values, *extras(rows)] for text in texts_in(value)]:
        assert "\0" not in text
        assert text.encode().decode() == text
    assert all(SMALLEST <= value <= LARGEST for value in values if isinstance(value, int))
    moments = [value for value in values if isinstance(value, datetime)]
    assert all(moment.utcoffset() == timedelta(0) for moment in moments)
    assert all(moment.microsecond % 1000 == 0 for moment in moments)


@given(frames)
@settings(max_examples=100)
def test_rows_that_have_a_key_have_it_once(frame: dict[str, Any]) -> None:
    rows = normalize("run-1", decode(json.dumps(frame).encode()), UTC)
    assert len(warned_paths(rows)) == len(rows.warnings)
    assert len(set(rows.drift)) == len(rows.drift)
    assert all(len(path) <= 500 for path in [*warned_paths(rows), *(d.path for d in rows.drift)])


@given(frames)
@settings(max_examples=100)
def test_the_same_answer_gives_the_same_rows(frame: dict[str, Any]) -> None:
    body = json.dumps(frame).encode()
    again = json.dumps(turned_round(frame), indent=1).encode("utf-16")
    assert normalize("run-1", decode(again), UTC) == normalize("run-1", decode(body), UTC)


def items_of(texts: st.SearchStrategy[str], counters: st.SearchStrategy[Any]) -> Any:
    return st.fixed_dictionaries(
        dict.fromkeys(("id", "name", "type", "sitemap"), texts)
        | {
            "status": st.sampled_from(["passed", "unresolved", ""]),
            "results": st.fixed_dictionaries(dict.fromkeys(COUNTERS, counters)),
        },
        optional={"testResultsUrl": texts},
    )


documented = st.lists(items_of(st.text("a\\é0\0", max_size=2), st.integers(0, LARGEST)), max_size=3)
nearly_documented = st.builds(
    lambda tests, keys, value: [*tests[:-1], with_value(tests[-1], keys, value)],
    st.lists(items_of(texts, st.integers(0, 9)), min_size=1, max_size=3),
    st.sampled_from([("id",), ("status",), ("results",), ("new",), ("results", "passed"), ()]),
    json_values,
)


def with_value(item: dict[str, Any], keys: Keys, value: Any) -> Any:
    if not keys:
        return value
    return {**item, keys[0]: with_value(item.get(str(keys[0]), {}), keys[1:], value)}


@given(documented | nearly_documented)
@settings(max_examples=300)
def test_the_short_cut_for_documented_tests_gives_the_same_rows(tests: list[Any]) -> None:
    payload = decode(json.dumps({"result": {**sample(), "tests": tests}}).encode())
    the_long_way = normalize("run-1", payload._replace(is_storable=False), UTC)
    assert normalize("run-1", payload, UTC) == the_long_way


def test_normalizing_leaves_the_payload_as_it_was() -> None:
    payload = decode(json.dumps({"result": placed(("new",), ["\0"])}).encode())
    before = deepcopy(payload.document)
    normalize("run-1", payload, UTC)
    assert payload.document == before


# What the API was not known to send.


@pytest.mark.parametrize(
    ("keys", "extra", "drift"),
    [
        (("new",), lambda rows: rows.run.extra, "result.new"),
        (("tests", 0, "new"), lambda rows: rows.tests[0].extra, "result.tests[].new"),
        (
            ("environments", 2, "new"),
            lambda rows: rows.environments[2].extra,
            "result.environments[].new",
        ),
        (("results", "new"), lambda rows: rows.counts[0].other, "result.results.new"),
        (
            ("tests", 0, "results", "new"),
            lambda rows: rows.counts[1].other,
            "result.tests[].results.new",
        ),
    ],
    ids=lambda part: path_of(part) if isinstance(part, tuple) else "",
)
@pytest.mark.parametrize(
    ("value", "json_type"),
    [
        (None, "null"),
        (True, "boolean"),
        (7, "number"),
        (0.5, "number"),
        ("x", "string"),
        ([1, "é"], "array"),
        ({"b": 1, "a": None}, "object"),
    ],
    ids=str,
)
def test_an_unknown_field_is_kept_and_noted(
    keys: Keys, extra: Callable[[Rows], str], drift: str, value: Any, json_type: str
) -> None:
    rows = rows_of(placed(keys, value))
    assert json.loads(extra(rows)) == {"new": value}
    assert rows.drift == [Drift(drift, json_type)]
    assert rows.warnings == []


def test_a_huge_unknown_number_is_noted_as_a_number() -> None:
    rows = with_number(("new",), "1e99999999999999999999")
    assert rows.run.extra == '{"new":1e99999999999999999999}'
    assert rows.drift == [Drift("result.new", "number")]


def test_fields_beside_the_result_are_kept_and_noted() -> None:
    rows = rows_of(placed(("new",), 1), meta={"version": 2}, warnings=[])
    assert rows.run.extra == '{"$":{"meta":{"version":2},"warnings":[]},"new":1}'
    assert rows.drift == [
        Drift("meta", "object"),
        Drift("result.new", "number"),
        Drift("warnings", "array"),
    ]


def test_an_unknown_field_is_cleaned_to_its_depths() -> None:
    rows = rows_of(placed(("new",), {"a": ["b\0"], "c\ud800": 1}))
    assert json.loads(rows.run.extra or "") == {"new": {"a": [f"b{REPLACED}"], f"c{REPLACED}": 1}}
    reason = "has a NUL or a lone surrogate, kept as U+FFFD"
    assert rows.warnings == [
        LeafWarning("result.new.a[0]", json.dumps("b\0"), reason),
        LeafWarning(f"result.new.c{REPLACED}", json.dumps("c\ud800"), reason),
    ]


def test_a_field_name_that_no_database_keeps_is_replaced_and_warned_of() -> None:
    rows = rows_of(placed(("a\0",), 1))
    assert json.loads(rows.run.extra or "") == {f"a{REPLACED}": 1}
    assert [(warned.path, warned.value) for warned in rows.warnings] == [
        (f"result.a{REPLACED}", json.dumps("a\0"))
    ]
    assert rows.drift == [Drift(f"result.a{REPLACED}", "number")]


def test_a_path_is_cut_to_what_an_index_can_hold() -> None:
    rows = rows_of(placed(("x" * 1000,), "\0"))
    path = "result." + "x" * 493
    assert [warned.path for warned in rows.warnings] == [path]
    assert rows.drift == [Drift(path, "string")]


@pytest.mark.parametrize(
    ("keys", "value", "drift"),
    [
        (("name",), 5, Drift("result.name", "number")),
        (("name",), None, Drift("result.name", "null")),
        (("duration",), "5", Drift("result.duration", "string")),
        (("results",), [], Drift("result.results", "array")),
        (("results", "failed"), True, Drift("result.results.failed", "boolean")),
        (("tests", 0), "x", Drift("result.tests[]", "string")),
        (("tests", 0, "status"), 1, Drift("result.tests[].status", "number")),
        (("environments", 1), None, Drift("result.environments[]", "null")),
        (("environments", 1, "os"), {}, Drift("result.environments[].os", "object")),
    ],
    ids=str,
)
def test_a_known_field_of_a_new_type_is_noted(keys: Keys, value: Any, drift: Drift) -> None:
    assert rows_of(placed(keys, value)).drift == [drift]


@pytest.mark.parametrize(
    "status", ["passed", "failed", "aborted", "pending", "unresolved", "completed", "", None]
)
def test_a_status_seen_in_the_wild_is_no_drift(status: str | None) -> None:
    result = placed(("status",), status)
    result["tests"][0]["status"] = status
    rows = rows_of(result)
    assert (rows.run.status, rows.tests[0].status) == (status, status)
    assert (rows.drift, rows.warnings) == ([], [])


def test_an_unknown_status_is_kept_and_noted() -> None:
    result = placed(("status",), "Passed")
    result["tests"][0]["status"] = "skipped"
    rows = rows_of(result)
    assert (rows.run.status, rows.tests[0].status) == ("Passed", "skipped")
    assert rows.drift == [
        Drift("result.status=Passed", "string"),
        Drift("result.tests[].status=skipped", "string"),
    ]


# Viewports, times and sums.


@pytest.mark.parametrize(
    ("viewport", "size"),
    [
        ("1442x3227", (1442, 3227)),
        ("0x0", (0, 0)),
        ("800X600", (800, 600)),
        (" 800x600 ", (800, 600)),
        ("", (None, None)),
    ],
)
def test_a_viewport_is_a_width_and_a_height(
    viewport: str, size: tuple[int | None, int | None]
) -> None:
    rows = rows_of(placed(VIEWPORT.keys, viewport))
    environment = rows.environments[1]
    assert environment.viewport == viewport
    assert (environment.viewport_width, environment.viewport_height) == size
    assert rows.warnings == []


@pytest.mark.parametrize(
    "viewport",
    ["1442", "1442x", "x", "-1x5", "1.5x2", "axb", "1x2x3", "\u0661x\u0662", "9" * 30 + "x1"],
)
def test_a_viewport_of_another_form_has_no_size(viewport: str) -> None:
    rows = rows_of(placed(VIEWPORT.keys, viewport))
    environment = rows.environments[1]
    assert environment.viewport == viewport
    assert (environment.viewport_width, environment.viewport_height) == (None, None)
    assert warned_paths(rows) == {"result.environments[1].viewport"}


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2023-10-24T13:00:12.463Z", datetime(2023, 10, 24, 13, 0, 12, 463000, UTC)),
        ("2023-10-24T13:00:12Z", datetime(2023, 10, 24, 13, 0, 12, tzinfo=UTC)),
        ("2023-10-24T15:00:12.463+02:00", datetime(2023, 10, 24, 13, 0, 12, 463000, UTC)),
        ("2023-10-23T23:30:00-05:30", datetime(2023, 10, 24, 5, 0, tzinfo=UTC)),
        ("2023-10-24T13:00:12.463999Z", datetime(2023, 10, 24, 13, 0, 12, 463000, UTC)),
        ("1969-12-31T23:59:59.999999Z", datetime(1969, 12, 31, 23, 59, 59, 999000, UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999Z", datetime(9999, 12, 31, 23, 59, 59, 999000, UTC)),
    ],
)
def test_a_start_is_read_in_utc_to_the_millisecond(text: str, moment: datetime) -> None:
    rows = rows_of(placed(("started_at",), text))
    assert rows.run.started_at == moment
    assert rows.run.started_at.tzinfo is UTC
    assert rows.warnings == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2023-10-24T13:00:12", "has no time zone"),
        ("2023-10-24", "has no time zone"),
        ("", "is no ISO 8601 time"),
        ("yesterday", "is no ISO 8601 time"),
        ("2023-13-24T13:00:12Z", "is no ISO 8601 time"),
        ("2023-02-30T13:00:12Z", "is no ISO 8601 time"),
        ("1698152412", "is no ISO 8601 time"),
        ("0001-01-01T00:00:00+01:00", "is no ISO 8601 time"),
        ("9999-12-31T23:59:59-01:00", "is no ISO 8601 time"),
    ],
)
def test_a_start_that_cannot_be_read_is_null_and_warned_of(text: str, reason: str) -> None:
    rows = rows_of(placed(("started_at",), text))
    assert (rows.run.started_at, rows.run.started_on, rows.run.ended_at) == (None, None, None)
    assert rows.warnings == [LeafWarning("result.started_at", json.dumps(text), reason)]


@pytest.mark.parametrize("text", ["2023-10-24\x0013:00:12Z", "2023-10-24\ud80013:00:12Z"])
def test_a_garbled_start_is_no_time(text: str) -> None:
    rows = rows_of(placed(("started_at",), text))
    assert rows.run.started_at is None
    assert warned_paths(rows) == {"result.started_at"}


@pytest.mark.parametrize(
    ("zone", "text", "day"),
    [
        ("UTC", "2023-10-24T23:59:59Z", date(2023, 10, 24)),
        ("Europe/Berlin", "2023-10-24T21:59:59Z", date(2023, 10, 24)),
        ("Europe/Berlin", "2023-10-24T22:00:00Z", date(2023, 10, 25)),
        ("Europe/Berlin", "2023-12-24T22:00:00Z", date(2023, 12, 24)),
        ("America/New_York", "2023-10-24T03:59:59Z", date(2023, 10, 23)),
        ("America/New_York", "2023-10-24T04:00:00Z", date(2023, 10, 24)),
        ("Asia/Tokyo", "9999-12-31T23:00:00Z", None),
        ("America/New_York", "0001-01-01T00:00:00Z", None),
    ],
)
def test_the_day_of_a_start_is_the_reporting_zones(zone: str, text: str, day: date | None) -> None:
    payload = decode(json.dumps({"result": placed(("started_at",), text)}).encode())
    assert normalize("run-1", payload, ZoneInfo(zone)).run.started_on == day


@pytest.mark.parametrize(
    ("zone", "text", "hour"),
    [
        ("UTC", "2023-10-24T22:59:59Z", 22),
        ("Asia/Kolkata", "2023-10-24T18:29:59Z", 23),
        ("Asia/Kolkata", "2023-10-24T18:30:00Z", 0),
        ("Europe/Berlin", "2023-10-29T00:30:00Z", 2),
        ("Europe/Berlin", "2023-10-29T01:30:00Z", 2),  # an hour later, the clock set back
        ("UTC", "soon", None),
    ],
)
def test_the_hour_of_a_start_is_that_of_the_teams_clock(
    zone: str, text: str, hour: int | None
) -> None:
    payload = decode(json.dumps({"result": placed(("started_at",), text)}).encode())
    assert normalize("run-1", payload, ZoneInfo(zone)).run.started_hour == hour


@pytest.mark.parametrize("status", ["passed", "failed", "aborted", "completed", "unresolved"])
def test_a_run_that_is_over_has_an_end(status: str) -> None:
    rows = rows_of(placed(("status",), status))
    assert rows.run.ended_at == datetime(2023, 10, 24, 13, 4, 1, 132000, UTC)


@pytest.mark.parametrize("status", ["pending", "", None, "running", "Passed", 5])
def test_a_run_that_may_still_be_going_has_no_end(status: object) -> None:
    assert rows_of(placed(("status",), status)).run.ended_at is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("started_at", None),
        ("started_at", "garbled"),
        ("duration", None),
        ("duration", "abc"),
        ("duration", LARGEST),
        ("duration", SMALLEST),
    ],
)
def test_an_end_that_cannot_be_reckoned_is_null(key: str, value: Any) -> None:
    assert rows_of(placed((key,), value)).run.ended_at is None


@pytest.mark.parametrize(
    ("counters", "total"),
    [
        ({"failed": 1, "passed": 2, "aborted": 3, "pending": 4, "unresolved": 5}, 15),
        ({"failed": 0}, 0),
        ({"failed": 1, "passed": None, "new": 7}, 1),
        ({"failed": 1, "passed": "x"}, 1),
        ({"new": 7}, None),
        ({}, None),
        (None, None),
        ({"failed": LARGEST}, LARGEST),
        ({"failed": LARGEST, "passed": 1}, None),
        ({"failed": SMALLEST}, SMALLEST),
    ],
    ids=str,
)
def test_the_total_sums_the_documented_counters_that_are_known(
    counters: Any, total: int | None
) -> None:
    result = placed(("results",), counters)
    result["tests"][0]["results"] = counters
    assert [count.total for count in rows_of(result).counts] == [total, total]


# The environments a run is compared by.


def signature_of(environments: list[Any]) -> str:
    return rows_of({"environments": environments}).run.environment_signature


LINUX = {"os": "Linux", "browser": "Chrome", "device": "Desktop", "viewport": "1x1"}
MAC = {"os": "macOS", "browser": "Safari", "device": "Desktop", "viewport": "1x1"}


@pytest.mark.parametrize(
    "environments",
    [
        [MAC, LINUX],
        [LINUX, MAC, LINUX],
        [LINUX | {"name": "env-name_lvc0ei"}, MAC | {"name": 5}],
        [LINUX | {"new": 1}, MAC],
    ],
)
def test_order_names_and_duplicates_of_environments_mean_nothing(environments: list[Any]) -> None:
    assert signature_of(environments) == signature_of([LINUX, MAC])


@pytest.mark.parametrize("key", ["os", "browser", "device", "viewport"])
@pytest.mark.parametrize("value", ["other", "", None])
def test_another_environment_has_another_signature(key: str, value: str | None) -> None:
    assert signature_of([LINUX | {key: value}]) != signature_of([LINUX])


def test_nothing_is_not_the_empty_text_in_a_signature() -> None:
    assert signature_of([LINUX | {"os": None}]) != signature_of([LINUX | {"os": ""}])
