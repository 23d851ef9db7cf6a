"""Decode one answer of the API, tolerantly, and hash its content.

Reads no clock, file, network or database. Knows the documented shape of an answer and nothing of
our tables; an answer that cannot be accepted at all raises a `PayloadError`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, InvalidOperation
from itertools import chain, compress
from typing import Any, NamedTuple, NoReturn

import msgspec

from etl.answers.rows import COUNTERS

MAX_DEPTH = 200
"""The deepest nesting of an answer. Python's own limit depends on the caller, this one does not."""

FINAL_STATUSES = frozenset({"passed", "failed", "aborted", "completed"})
OPEN_STATUS = "unresolved"
GOING_STATUSES = frozenset({"pending", "", None})
KNOWN_STATUSES = FINAL_STATUSES | GOING_STATUSES | {OPEN_STATUS}

# The documented fields with their JSON types, as seen in answers; any other is schema drift.
RUN_FIELDS: Mapping[str, type] = {
    "id": str,
    "name": str,
    "application": str,
    "status": str,
    "environments": list,
    "started_at": str,
    "duration": int,
    "results": dict,
    "tests": list,
}
ENVIRONMENT_FIELDS: Mapping[str, type] = {
    "name": str,
    "os": str,
    "viewport": str,
    "device": str,
    "browser": str,
}
TEST_FIELDS: Mapping[str, type] = {
    "id": str,
    "name": str,
    "status": str,
    "type": str,
    "sitemap": str,
    "testResultsUrl": str,
    "results": dict,
}
COUNTER_FIELDS: Mapping[str, type] = dict.fromkeys(COUNTERS, int)


class PayloadError(ValueError):
    """The answer's frame is broken, so no run can be read from it. Gives the reason in one line."""


class Payload(NamedTuple):
    """A decoded answer.

    `document` is the whole JSON object, with exact numbers (int, float or Decimal; Raw beyond
    those). Its `result` is an object whose `tests` and `environments` are lists or missing.
    `content_hash` is equal for two answers if and only if they are equal as JSON. `is_storable`
    is true if no text has a NUL or a lone surrogate, which no database can store.
    """

    document: dict[str, Any]
    content_hash: str
    is_storable: bool

    @property
    def result(self) -> dict[str, Any]:
        """The run itself."""
        result: dict[str, Any] = self.document["result"]
        return result


def decode(body: bytes) -> Payload:
    """Return the answer in `body`.

    Raises:
        PayloadError: it is not JSON, has no `result` object, or its `tests` or `environments`
            are not lists.
    """
    try:
        document = _parse(body)
        if not isinstance(document, dict):
            raise PayloadError("the answer is no JSON object")
        if _count_brackets(body) > MAX_DEPTH and _measure_depth(document) > MAX_DEPTH:
            raise PayloadError("the answer is nested too deeply")
        _check_frame(document)
        return _to_payload(document)
    except RecursionError:
        raise PayloadError("the answer is nested too deeply") from None


def _check_frame(document: dict[str, Any]) -> None:
    result = document.get("result")
    if not isinstance(result, dict):
        raise PayloadError("the answer has no `result` object")
    for name in ("tests", "environments"):
        if not isinstance(result.get(name, []), list):
            raise PayloadError(f"`result.{name}` is no list")


def _count_brackets(body: bytes) -> int:
    """Count the opening brackets, an upper bound of the nesting."""
    return body.count(b"{") + body.count(b"[")


def _measure_depth(document: Any) -> int:
    """Return how deep objects and lists are nested, without a call for each of them."""
    depth, level = 0, [document]
    while level:
        depth += 1
        members = list(
            chain.from_iterable(each.values() if type(each) is dict else each for each in level)
        )
        level = list(compress(members, map(_CONTAINERS.__contains__, map(type, members))))
    return depth


_CONTAINERS = frozenset({dict, list})


def encode_canonical(value: Any) -> str:
    """Return `value` as JSON text with sorted keys: equal values give the same text."""
    return _ENCODER.encode(value).decode()


def _parse(body: bytes) -> Any:
    if not body.strip():
        raise PayloadError("the answer is empty")
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _parse_leniently(body)


def _parse_leniently(body: bytes) -> Any:
    """Parse JSON that msgspec refuses: byte order marks, UTF-16, lone surrogates, huge integers."""
    try:
        text = body.decode(json.detect_encoding(body))
        return json.loads(
            text,
            parse_int=_parse_number,
            parse_float=_parse_number,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError:
        reason = _MARKUP if _is_markup(body) else "the answer is not UTF-8 text"
        raise PayloadError(reason) from None
    except ValueError as error:
        if _is_markup(body):
            raise PayloadError(_MARKUP) from None
        raise PayloadError(f"the answer is not JSON: {error}") from None


_MARKUP = (
    "the answer is HTML or XML, not JSON, such as the page of a proxy or a login;"
    " check base_url and the proxies on the way to it"
)
_BEGINS_LIKE_MARKUP = re.compile(rb"[\xef\xbb\xbf\xff\xfe\s\0]*<\0?[!?A-Za-z]")
"""In any encoding, with or without a byte order mark."""


def _is_markup(body: bytes) -> bool:
    return _BEGINS_LIKE_MARKUP.match(body) is not None


# Python converts integers from and to text up to this length; longer ones become Decimals.
_MAX_DIGITS = 4300
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)


def _parse_number(text: str) -> int | float | Decimal | msgspec.Raw:
    """Return the exact value of a JSON number; 1, 1.0 and 1e0 give the same value."""
    try:
        exact = Decimal(text).normalize(_EXACT)
    except InvalidOperation:  # an exponent of some 19 digits: keep the text
        return msgspec.Raw(text.encode())
    if exact.adjusted() < _MAX_DIGITS and exact == exact.to_integral_value():
        return int(exact)
    value = float(exact)
    return value if Decimal(repr(value)) == exact else exact


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _to_payload(document: dict[str, Any]) -> Payload:
    try:
        text = _ENCODER.encode(document)
        is_storable = _NUL not in text
    except UnicodeEncodeError:
        # No answer is a list: the hash differs from that of an answer with the escapes as text.
        text = _ENCODER.encode([_escape_surrogates(document)])
        is_storable = False
    return Payload(document, hashlib.sha256(text).hexdigest(), is_storable)


_NUL = rb"\u0000"
"""NUL as the encoder writes it; a backslash followed by these characters looks alike."""
_BACKSLASH_OR_SURROGATE = re.compile("[\\\\\ud800-\udfff]")


def _escape_surrogates(value: Any) -> Any:
    """Escape lone surrogates, which no encoding can represent.

    Escapes backslashes too, so that different texts stay different.
    """
    if isinstance(value, str):
        return _BACKSLASH_OR_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)
    if isinstance(value, dict):
        return {
            _escape_surrogates(name): _escape_surrogates(member) for name, member in value.items()
        }
    if isinstance(value, list):
        return [_escape_surrogates(item) for item in value]
    return value


_DECODER: msgspec.json.Decoder[Any] = msgspec.json.Decoder(float_hook=_parse_number)
_ENCODER = msgspec.json.Encoder(order="sorted", decimal_format="number")
