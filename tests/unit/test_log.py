"""One line for each event, for people or machines, and no secret in any of them."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
import structlog

from etl.config.settings import Log
from etl.secrets.masking import forget_secrets, hide
from etl.telemetry.log import bind_context, configure, get_logger, pass_lines

KEY = 'k3y/with+signs="of=1'
URL = "https://127.0.0.1/api/result/r1?apiKey=unhidden&read_token=also%2Bunhidden"
FORMATS: list[Literal["text", "json"]] = ["text", "json"]
LEVELS: list[Literal["debug", "info", "warning", "error"]] = ["debug", "info", "warning", "error"]

Lines = Callable[[], list[str]]


@pytest.fixture(autouse=True)
def logging_of_our_own() -> Iterator[None]:
    """Begin without the pass of an earlier test; end whatever a test configures or hides."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    structlog.contextvars.clear_contextvars()
    forget_secrets()
    hide(KEY)
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """Return what was logged since the last call; stdout has to stay empty."""

    def taken() -> list[str]:
        out, err = capsys.readouterr()
        assert out == ""
        return err.splitlines()

    return taken


def events(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_text_has_time_level_event_and_facts(lines: Lines) -> None:
    configure(Log(format="text"))
    get_logger().info("run archived", run_id="r1", tests=3)
    [line] = lines()
    stamp, rest = line.split(maxsplit=1)
    assert stamp.endswith("Z")
    assert rest == "[info] run archived run_id=r1 tests=3"


def test_each_text_line_of_a_pass_begins_with_time_and_number(lines: Lines) -> None:
    configure(Log(format="text"))
    with pass_lines(datetime(2026, 5, 4, tzinfo=UTC)):
        bind_context(pass_id=12)
        get_logger().warning("run failed", run_id="r1")
        get_logger().info("pass finished", new=1, text="1 new")
    heads, rests = zip(*(line.split(" ", 1) for line in lines()), strict=True)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", head) for head in heads)
    assert rests == ("pass 12: [warning] run failed run_id=r1", "pass 12: 1 new")


def test_json_is_one_object_a_line(lines: Lines) -> None:
    configure(Log(format="json"))
    get_logger().info("run archived", run_id="r1\nü", tests=3)
    [event] = events(lines())
    assert event.pop("timestamp").endswith("Z")
    assert event == {"level": "info", "event": "run archived", "run_id": "r1\nü", "tests": 3}


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_below_the_level_is_not_shown(
    level: Literal["debug", "info", "warning", "error"], lines: Lines
) -> None:
    configure(Log(level=level, format="json"))
    for name in LEVELS:
        getattr(get_logger(), name)("said")
    assert [event["level"] for event in events(lines())] == LEVELS[LEVELS.index(level) :]


def test_configured_twice_says_things_once(lines: Lines) -> None:
    configure(Log())
    configure(Log())
    get_logger().info("said")
    assert len(lines()) == 1


@pytest.mark.parametrize("name", ["urllib3.connectionpool", "alembic.runtime", "uvicorn.error"])
def test_a_chatty_library_is_heard_from_warnings_up(name: str, lines: Lines) -> None:
    configure(Log(level="debug", format="json"))
    logging.getLogger(name).info("noise")
    logging.getLogger(name).warning("trouble with %s", "r1")
    assert [event["event"] for event in events(lines())] == ["trouble with r1"]


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("level", LEVELS)
def test_no_secret_at_any_level(
    level: str, log_format: Literal["text", "json"], lines: Lines
) -> None:
    configure(Log(level="debug", format=log_format))
    own, library = getattr(get_logger(), level), getattr(logging.getLogger("some.library"), level)
    own(f"asked with {KEY}", url=URL, key=KEY)
    own("asked", nested={"urls": [URL], KEY: KEY}, error=ValueError(KEY, URL))
    library("GET %s with %r", URL, KEY)
    library(KEY, extra={"url": URL})
    assert_discreet(lines(), 4)


@pytest.mark.parametrize("log_format", FORMATS)
def test_no_secret_in_a_traceback(log_format: Literal["text", "json"], lines: Lines) -> None:
    configure(Log(format=log_format))
    try:
        fail()
    except ConnectionError:
        get_logger().exception("failed")
        logging.getLogger("some.library").exception("failed", stack_info=True)
    shown = lines()
    assert "ConnectionError: cannot reach https://127.0.0.1/api/result/r1?apiKey=***" in "\n".join(
        shown
    )
    assert_discreet(shown, 2)


def test_json_stays_json_where_a_url_is_masked_inside_quotes(lines: Lines) -> None:
    configure(Log(format="json"))
    get_logger().info("asked", answer=[f'{{"url": "{URL}"}}'])
    [event] = events(lines())
    assert event["answer"] == [
        '{"url": "https://127.0.0.1/api/result/r1?apiKey=***&read_token=***"}'
    ]


def fail() -> None:
    raise ConnectionError(f"cannot reach {URL} with {KEY}")


def assert_discreet(lines: list[str], least: int) -> None:
    shown = "\n".join(lines)
    assert len(lines) >= least
    for part in ("k3y", "signs", "unhidden"):
        assert part not in shown
