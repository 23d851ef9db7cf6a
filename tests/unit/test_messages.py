"""Messages between the pass and the fetching side survive the way unchanged."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw, ValidationError, msgpack

from etl.answers.normalize import normalize
from etl.answers.outcome import (
    Answer,
    Body,
    Deferred,
    Denied,
    Missing,
    Outcome,
    Postponed,
    Reason,
    Reject,
    Target,
    TransientError,
    Unchanged,
)
from etl.answers.payload import decode
from etl.answers.rows import Rows
from etl.answers.test_names import name_tests
from etl.config.settings import Config, Source
from etl.fetch.fetcher import pack
from etl.fetch.messages import Ask, Batch, Begin, Done, End, Give, TargetAsk, unpack
from etl.fetch.permits import Halt, PermitAsk, Permits
from etl.fetch.rate_limit import RequestLimits
from tests.support.fake_api import SAMPLE

AT = datetime(2024, 5, 1, 12, 0, 0, 123000, tzinfo=UTC)
BODY = Body(b"\x28\xb5\x00", "zstd", 3, "c0ffee")


def rows_of(body: bytes) -> Rows:
    return normalize("r-1", decode(body), UTC)


DOWN = TransientError(Reason.NO_ANSWER, "500", None, is_busy=False, chance=0.5)
REJECT = Reject("r-1", AT, 200, Reason.UNREADABLE, "is no JSON", b"\x00<\xff", "c0ffee", 0.25)


def sent(*outcomes: Outcome) -> list[Outcome]:
    """Return outcomes as the pass gets them in a batch."""
    batch = Batch(Raw(msgpack.encode([pack(each) for each in outcomes])), len(outcomes), 1)
    return unpack(msgpack.decode(msgpack.encode(batch), type=Batch))


def test_an_answer_comes_out_with_its_rows() -> None:
    rows = rows_of(SAMPLE)
    answer = Answer("r-1", "default", AT, BODY, "hash", rows, name_tests(rows.tests))
    assert sent(answer) == [answer]


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
    [answer] = sent(Answer("r-1", "default", AT, BODY, "hash", rows, name_tests(rows.tests)))
    assert isinstance(answer, Answer)
    assert answer.rows == rows


@pytest.mark.parametrize(
    "outcome",
    [
        Unchanged("r-1", AT),
        REJECT,
        Missing("r-1", "404", AT),
        Denied("r-1", "no"),
        Postponed(
            "r-1",
            TransientError(Reason.NO_ANSWER, "500", None, False, 0.5),
            None,
            False,
            "Traceback",
        ),
        Postponed("r-1", TransientError(Reason.HTTP_STATUS, "429", 3.5, True, 0)),
        Deferred("r-1", TransientError(Reason.NO_ANSWER, "down", None, False, 0)),
        Deferred("r-1", TransientError(Reason.UNREADABLE, "page", None, False, 0), REJECT),
    ],
    ids=lambda outcome: type(outcome).__name__,
)
def test_every_other_outcome_comes_out_as_it_was(outcome: Outcome) -> None:
    assert sent(outcome) == [outcome]


CONFIG = Config(sources={"eu": Source("https://eu.example", key_env="EU_KEY")})
TARGET = Target("r-1", "eu", "encrypted", None)


@pytest.mark.parametrize(
    "message",
    [
        Begin(CONFIG, RequestLimits(8, 50, 3, 300), 8, 2, controls={"eu": TARGET}),
        Ask(targets=TargetAsk(1000, ["eu"])),
        Ask(permits=PermitAsk("eu", 2, False, 8, 1, 9, 0, 0, Halt.BUSY, "busy")),
        Give([TARGET]),
        Give(permits=Permits("eu", 1.5, 0.5, 8, may_probe=True), drops_waiting=True),
        Done(),
        Batch(Raw(msgpack.encode([])), 0, 7, End(Halt.DOWN, "down")),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_comes_out_as_it_was(
    message: Begin | Ask | Give | Done | Batch,
) -> None:
    kinds = Begin | Ask | Give | Done | Batch
    assert msgpack.decode(msgpack.encode(message), type=kinds) == message


def test_input_that_is_no_message_is_an_error() -> None:
    with pytest.raises(ValidationError):
        msgpack.decode(msgpack.encode(["Other", 1]), type=Give | Done)
