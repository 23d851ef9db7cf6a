"""The decoder and the normalizer on whatever a server may send: PayloadError, and nothing else.

The inputs are the same in each run: the time alone decides how many there are. The default suite
spends FUZZ_SECONDS (a few) on them, `make fuzz` ten minutes.
"""

import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime
from itertools import count
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from etl.answers.normalize import LARGEST_INTEGER, SMALLEST_INTEGER, normalize
from etl.answers.payload import PayloadError, decode, encode_canonical
from etl.answers.rows import Rows
from tests.support.fake_api import SAMPLE

FUZZ_S = float(os.environ.get("FUZZ_SECONDS", "4"))
LONGEST_S = 2.0
"""No input here has more than some 10 kB: one that takes longer has found something."""
ROUND = settings(
    max_examples=200,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)

pytestmark = pytest.mark.timeout(FUZZ_S + 300)

# --- what is thrown at them ---

# What JSON allows and few expect, what it does not allow and many send, and what else may come.
ODD_TOKENS = (
    b"null", b"true", b"-0", b"1e400", b"1e-400", b"1e99999999999999999999", b"-1E+99999999",
    b"9223372036854775808", b"123456789012345678901234567890", b"0.1e1", b"NaN", b"Infinity",
    b"-Infinity", b"01", b"+1", b".5", b"1.", b'""', b'"\\u0000"', b'"\\ud800"',
    b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"', b"\xed\xa0\x80", b"\xff\xfe", b"\xfe\xff",
    b"\xef\xbb\xbf", b"\x00", b"\x1b[2J", b"\xc0\xaf", b"\xf5", b"[[[[[[[[", b"]]]]",
    b'{"":{"":{"":', b'"$":', b'"result":', b'"tests":', b'"status":"pending",',
    b'"0001-01-01T00:00:00+23:59"', b'"9999-12-31T23:59:59.999-23:59"',
    b'"2024-02-30T00:00:00Z"', b'"2023-10-24T13:00:12.463+00:00:00.000001"', b'"W24-W01-1"',
    b'"999999999x999999999"', b'"0x0"', b'"-1x5"', b"\\", b'\\"', b",,", b"::", b"//x", b"/**/",
)  # fmt: skip
FORMS = (
    SAMPLE,
    json.dumps(json.loads(SAMPLE), separators=(",", ":")).encode(),
    json.dumps(json.loads(SAMPLE)).encode("utf-16"),
)
FIELDS = (
    "result", "id", "name", "application", "status", "environments", "started_at", "duration",
    "results", "tests", "os", "viewport", "device", "browser", "type", "sitemap", "testResultsUrl",
    "failed", "passed", "aborted", "pending", "unresolved", "$", "$$", "", "new\x00", "\ud800",
)  # fmt: skip

odd_numbers = st.sampled_from(
    [2**63, -(2**63), -(2**63) - 1, 2**64, 10**400, 1.5, -0.0, 1e308, 5e-324, True, 0]
)
odd_times = st.sampled_from(
    [
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59.999999-23:59",
        "2023-10-24T13:00:12",
        "2023-10-24",
        "2023-W43-2T13Z",
        "2023-10-24\x0013:00:12Z",
        "\uff12\uff10\uff12\uff13-10-24T13:00:12Z",
    ]
)
odd_texts = odd_times | st.sampled_from(["\x00", "\ud800", "\udfff\ud800", "1x1", "\u0661x\u0661"])
leaves = st.none() | odd_numbers | st.integers() | st.floats() | odd_texts | st.text(max_size=20)
names = st.sampled_from(FIELDS) | st.text(max_size=8)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6),
    max_leaves=12,
)


@st.composite
def replaced(draw: st.DrawFn) -> bytes:
    """The sample answer, some of its parts replaced, renamed, doubled or taken away."""
    document = json.loads(SAMPLE)
    for _ in range(draw(st.integers(1, 4))):
        parents = list(_containers(document))[::-1]  # the first ones are drawn most often
        if not parents:
            break
        parent = draw(st.sampled_from(parents))
        key = draw(
            st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent)))
        )
        match draw(st.sampled_from(["replace", "rename", "double", "remove"])):
            case "rename" if isinstance(parent, dict):
                parent[draw(names)] = parent.pop(key)
            case "double" if isinstance(parent, list):
                parent.insert(key, parent[key])
            case "remove":
                del parent[key]
            case _:
                parent[key] = draw(leaves | values)
    return json.dumps(document).encode(draw(st.sampled_from(["utf-8", "utf-16", "utf-32-le"])))


def _containers(value: Any) -> Iterator[Any]:
    """Yield each object and list within `value` that is not empty."""
    if isinstance(value, dict | list) and value:
        yield value
        for member in value.values() if isinstance(value, dict) else value:
            yield from _containers(member)


VALUE = re.compile(rb'(?<=:)[ ]?("[^"]*"|\d+)')


def damaged(dice: random.Random) -> bytes:
    """Return the bytes of the sample answer, changed, cut, repeated and spliced at some places."""
    body = bytearray(dice.choice(FORMS))
    for _ in range(dice.choice([1, 1, 1, 2, 3, 8])):
        start = dice.randint(0, len(body))
        stop = min(len(body), start + dice.randint(0, 40))
        match dice.choice(
            ["value", "value", "splice", "insert", "noise", "cut", "repeat", "flip", "truncate"]
        ):
            case "value" if found := VALUE.search(body, start):
                body[slice(*found.span())] = dice.choice(ODD_TOKENS)
            case "splice":
                body[start:stop] = dice.choice(ODD_TOKENS)
            case "insert":
                body[start:start] = dice.choice(ODD_TOKENS)
            case "noise":
                body[start:stop] = dice.randbytes(dice.randint(0, 8))
            case "cut":
                del body[start:stop]
            case "repeat":
                body[start:start] = body[start:stop] * dice.randint(1, 20)
            case "flip" if start < len(body):
                body[start] ^= 1 << dice.randint(0, 7)
            case "truncate" if dice.random() < 0.2:
                del body[start:]
    return bytes(body)


fragments = st.lists(st.sampled_from(ODD_TOKENS) | st.sampled_from([b"{", b"}", b"[", b"]", b","]))
framed = st.binary(max_size=40) | fragments.map(b"".join)
bodies = (
    st.binary(max_size=200)
    | framed.map(lambda field: b'{"result":{"duration":%b}}' % field)
    | framed.map(lambda field: b'{"result":{"tests":[{"name":%b}]}}' % field)
    | st.dictionaries(names, values).map(lambda value: json.dumps({"result": value}).encode())
    | replaced()
)

# --- what must hold, whatever comes ---


def check(body: bytes) -> None:
    """Decode and normalize `body`: in time, with no error but ours, and into rows that fit."""
    begun_at = time.process_time()
    try:
        payload = decode(body)
        rows = normalize("run", payload, ZoneInfo("Pacific/Kiritimati"))
    except PayloadError as error:
        message = str(error)
        assert message
        assert message.isprintable()
    else:
        assert all(map(_fits, _cells(rows)))
        assert len({warned.path for warned in rows.warnings}) == len(rows.warnings)
        again = (
            decode(encode_canonical(payload.document).encode()) if _is_speakable(body) else payload
        )
        assert again.content_hash == payload.content_hash
    assert time.process_time() - begun_at < LONGEST_S


def _is_speakable(body: bytes) -> bool:
    """Tell whether the answer has no lone surrogate, which canonical JSON has no bytes for."""
    try:
        encode_canonical(decode(body).document)
    except UnicodeEncodeError:
        return False
    return True


def _cells(rows: Rows) -> Iterator[Any]:
    for row in [
        rows.run,
        *rows.environments,
        *rows.tests,
        *rows.counts,
        *rows.warnings,
        *rows.drift,
    ]:
        yield from row


def _fits(cell: Any) -> bool:
    """Tell whether both databases can keep `cell`."""
    match cell:
        case str():
            return "\x00" not in cell and cell.encode().decode() == cell
        case int():
            return SMALLEST_INTEGER <= cell <= LARGEST_INTEGER
        case _:
            return cell is None or isinstance(cell, date | datetime)


def test_whatever_comes_is_rows_or_a_payload_error() -> None:
    tried = 0

    def one(body: bytes) -> None:
        nonlocal tried
        tried += 1
        check(body)

    for number in _until(FUZZ_S / 2):
        seed(number)(ROUND(given(bodies)(one)))()
    sys.stdout.write(f"{tried} made-up answers: nothing but PayloadError\n")


def test_a_damaged_answer_is_rows_or_a_payload_error() -> None:
    tried = 0
    for number in _until(FUZZ_S / 2):
        body = damaged(random.Random(number))
        try:
            check(body)
        except Exception as error:
            raise AssertionError(body) from error
        tried += 1
    sys.stdout.write(f"{tried} damaged answers: nothing but PayloadError\n")


def _until(seconds: float) -> Iterator[int]:
    """Count from 0, once at least, until the time is over."""
    deadline = time.monotonic() + seconds
    for number in count():
        yield number
        if time.monotonic() > deadline:
            return


# --- what once was found, and what it must not be again ---


def deep(opening: bytes, closing: bytes, times: int) -> bytes:
    return b'{"result":{"x":' + opening * times + b"0" + closing * times + b"}}"


SEEDS: Iterable[tuple[str, Callable[[], bytes]]] = (
    ("a list nested 100,000 deep", lambda: deep(b"[", b"]", 100_000)),
    ("objects nested 100,000 deep", lambda: deep(b'{"a":', b"}", 100_000)),
    ("nested just as deep as is decoded", lambda: deep(b"[", b"]", 900)),
    ("nested deep beside a lone surrogate", lambda: deep(b'["\\ud800",', b"]", 400)),
    ("brackets without an end", lambda: b"[" * 1_000_000),
    ("an integer of a million digits", lambda: deep(b"", b"9" * 1_000_000, 1)),
    ("an exponent of a million digits", lambda: deep(b"", b"e" + b"9" * 1_000_000, 1)),
    ("an exponent beyond all decimals", lambda: deep(b"", b"e-99999999999999999999", 1)),
    ("half a UTF-16 unit", lambda: json.dumps({"result": {}}).encode("utf-16") + b"\x00"),
    ("a byte order mark and nothing else", lambda: b"\xef\xbb\xbf"),
    ("white space and nothing else", lambda: b" \n\t\r"),
    ("the result as its own text", lambda: json.dumps(SAMPLE.decode()).encode()),
)


@pytest.mark.parametrize("body", [make for _, make in SEEDS], ids=[name for name, _ in SEEDS])
def test_a_seed_that_is_known_to_hurt(body: Callable[[], bytes]) -> None:
    check(body())
