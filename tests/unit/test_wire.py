"""Messages between the two processes: what goes in comes out, and nothing that is not whole."""

import io
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import DecodeError

from etl.answers.normalize import Rows, normalize
from etl.answers.outcome import (
    Answer,
    Body,
    Deferred,
    Fetched,
    Missing,
    Outcome,
    Postponed,
    Refused,
    Reject,
    Trouble,
    Unchanged,
)
from etl.answers.payload import decode
from etl.config.settings import Config, Source
from etl.fetch.dispatch import Limits
from etl.fetch.wire import Begin, Close, Interrupt, Line, Order, Written, pack, pack_rows, unpack
from tests.support.fake_api import SAMPLE

AT = datetime(2024, 5, 1, 12, 0, 0, 123000, tzinfo=UTC)
BODY = Body(b"\x28\xb5\x00", "zstd", 3, "c0ffee")


def rows_of(body: bytes) -> Rows:
    return normalize("r-1", decode(body), UTC)


def test_an_answer_comes_out_with_its_rows() -> None:
    rows = rows_of(SAMPLE)
    fetched = Fetched("r-1", "default", AT, BODY, "hash", pack_rows(rows))
    assert unpack(pack([fetched])) == [Answer("r-1", "default", AT, BODY, "hash", rows)]


@given(
    started_at=st.datetimes(),
    number=st.integers(-(2**63), 2**63 - 1),
    text=st.text(),
)
def test_rows_with_any_values_come_out_as_they_were(
    started_at: datetime, number: int, text: str
) -> None:
    """Whatever `normalize` makes of them: warnings and unknown fields, too."""
    result = {
        "name": text,
        "started_at": started_at.isoformat() + "Z",
        "duration": number,
        "environments": [{"name": text, "viewport": "10x20"}],
        "tests": [{"id": text, "name": text, "results": {"passed": number}, text: number}],
    }
    rows = rows_of(json.dumps({"result": result}).encode())
    fetched = Fetched("r-1", "default", AT, BODY, "hash", pack_rows(rows))
    [answer] = unpack(pack([fetched]))
    assert isinstance(answer, Answer)
    assert answer.rows == rows


@pytest.mark.parametrize(
    "outcome",
    [
        Unchanged("r-1", AT),
        Reject("r-1", AT, 200, "is no JSON", b"\x00<\xff", "c0ffee"),
        Missing("r-1", "404", AT),
        Refused("r-1", "no"),
        Refused("r-1", "internal error", "Traceback ..."),
        Postponed("r-1", Trouble("500", None, is_busy=False, chance=0.5)),
        Postponed("r-1", Trouble("429", 3.5, is_busy=True, chance=0)),
        Deferred("r-1", "down", 0),
    ],
    ids=lambda outcome: type(outcome).__name__,
)
def test_every_other_outcome_comes_out_as_it_was(outcome: Outcome) -> None:
    assert unpack(pack([outcome])) == [outcome]


def test_orders_come_out_in_turn_and_then_none() -> None:
    config = Config(sources={"eu": Source("https://eu.example", key_env="EU_KEY")})
    begin = Begin(config, Limits(8, 50, 3, 300), 8, 500, 2, 0)
    orders = [begin, Written(), Interrupt("SIGTERM"), Close()]
    sent = io.BytesIO()
    line: Line[Order] = Line(io.BytesIO(), sent, Order)
    for order in orders:
        line.send(order)
    received: Line[Order] = Line(io.BytesIO(sent.getvalue()), io.BytesIO(), Order)
    assert [received.receive() for _ in orders] == orders
    assert received.receive() is None


def test_what_is_no_message_is_an_error() -> None:
    line: Line[Order] = Line(io.BytesIO(b"hello, world"), io.BytesIO(), Order)
    with pytest.raises(DecodeError):
        line.receive()


@pytest.mark.parametrize("size", range(1, 12))
def test_a_message_of_which_the_end_is_missing_is_none(size: int) -> None:
    sent = io.BytesIO()
    line: Line[Order] = Line(io.BytesIO(), sent, Order)
    line.send(Written())
    assert size < len(sent.getvalue())
    cut: Line[Order] = Line(io.BytesIO(sent.getvalue()[:size]), io.BytesIO(), Order)
    assert cut.receive() is None
