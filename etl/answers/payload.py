"""Decode one answer of the API, tolerantly, and name its content.

Reads no clock, file, network or database. Knows the shape that the API is known to send and
nothing of our tables; what it cannot accept at all is a `PayloadError`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, InvalidOperation
from itertools import chain, compress
from typing import Any, NamedTuple, NoReturn

import msgspec

COUNTERS = ("failed", "passed", "aborted", "pending", "unresolved")

DEEPEST = 200
"""How deep an answer may be nested. Python's own limit depends on who calls: this one does not."""

FINAL_STATUSES = frozenset({"passed", "failed", "aborted", "completed"})
OPEN_STATUS = "unresolved"
GOING_STATUSES = frozenset({"pending", "", None})
KNOWN_STATUSES = FINAL_STATUSES | GOING_STATUSES | {OPEN_STATUS}

# The documented fields with their JSON types, as seen in answers; all else is drift.
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
    """The answer's frame is broken: there is no run to be read in it. Says why in one line."""


class Payload(NamedTuple):
    """A decoded answer.

    `document` is the whole JSON object, numbers exact (int, float or Decimal; Raw beyond that);
    its `result` is an object whose `tests` and `environments` are lists or not there.
    `content_hash` is equal for two answers if and only if they are equal as JSON. `is_storable`
    says that no text in it has a NUL or a lone surrogate, which no database keeps.
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
            is no list.
    """
    try:
        document = _parse(body)
        if not isinstance(document, dict):
            raise PayloadError("the answer is no JSON object")
        if _brackets(body) > DEEPEST and _depth(document) > DEEPEST:
            raise PayloadError("the answer is nested too deeply")
        return _framed(document)
    except RecursionError:
        raise PayloadError("the answer is nested too deeply") from None


def _framed(document: dict[str, Any]) -> Payload:
    result = document.get("result")
    if not isinstance(result, dict):
        raise PayloadError("the answer has no `result` object")
    for name in ("tests", "environments"):
        if not isinstance(result.get(name, []), list):
            raise PayloadError(f"`result.{name}` is no list")
    return _named(document)


def _brackets(body: bytes) -> int:
    """Count what may open an object or a list: nothing is nested deeper than that."""
    return body.count(b"{") + body.count(b"[")


def _depth(document: Any) -> int:
    """Count how deep objects and lists are nested, without a call for each of them."""
    depth, level = 0, [document]
    while level:
        depth += 1
        members = list(
            chain.from_iterable(each.values() if type(each) is dict else each for each in level)
        )
        level = list(compress(members, map(_CONTAINERS.__contains__, map(type, members))))
    return depth


_CONTAINERS = frozenset({dict, list})


def canonical(value: Any) -> str:
    """Return `value` as JSON text in the one form that equal values share: keys sorted."""
    return _ENCODER.encode(value).decode()


def _parse(body: bytes) -> Any:
    if not body.strip():
        raise PayloadError("the answer is empty")
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _parse_oddities(body)


def _parse_oddities(body: bytes) -> Any:
    """Read what the fast decoder declines: byte order marks, UTF-16, lone surrogates, huge ints."""
    try:
        text = body.decode(json.detect_encoding(body))
        return json.loads(
            text, parse_int=_number, parse_float=_number, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        raise PayloadError("the answer is not UTF-8 text") from None
    except ValueError as error:
        raise PayloadError(f"the answer is not JSON: {error}") from None


# Python converts no longer integers from and to text: those beyond are Decimals.
_MOST_DIGITS = 4300
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)


def _number(text: str) -> int | float | Decimal | msgspec.Raw:
    """Return a JSON number exactly, and so that 1, 1.0 and 1e0 are the same."""
    try:
        exact = Decimal(text).normalize(_EXACT)
    except InvalidOperation:  # the exponent has some 19 digits: only the text can hold it
        return msgspec.Raw(text.encode())
    if exact.adjusted() < _MOST_DIGITS and exact == exact.to_integral_value():
        return int(exact)
    value = float(exact)
    return value if Decimal(repr(value)) == exact else exact


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _named(document: dict[str, Any]) -> Payload:
    try:
        text = _ENCODER.encode(document)
        is_storable = _NUL not in text
    except UnicodeEncodeError:
        # In a list, which no answer is, it differs from one that has the escapes as its text.
        text = _ENCODER.encode([_spelled_out(document)])
        is_storable = False
    return Payload(document, hashlib.sha256(text).hexdigest(), is_storable)


_NUL = rb"\u0000"
"""How the encoder writes it; a text of a backslash and these characters looks like it, too."""
_UNSPEAKABLE = re.compile("[\\\\\ud800-\udfff]")


def _spelled_out(value: Any) -> Any:
    """Return `value` with each lone surrogate, which no encoding has bytes for, as its escape.

    Backslashes are escaped as well, so that different texts stay different.
    """
    if isinstance(value, str):
        return _UNSPEAKABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)
    if isinstance(value, dict):
        return {_spelled_out(name): _spelled_out(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_spelled_out(item) for item in value]
    return value


_DECODER: msgspec.json.Decoder[Any] = msgspec.json.Decoder(float_hook=_number)
_ENCODER = msgspec.json.Encoder(order="sorted", decimal_format="number")
