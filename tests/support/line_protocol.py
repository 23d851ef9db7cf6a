"""Answer queries in a child process: a line of JSON for each query, and one for its answer."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from msgspec import json as msgspec_json


class Answer(Struct, frozen=True):
    """The rows of a query, and the type that the driver gives for each column; or its error."""

    types: dict[str, str]
    rows: list[list[Any]]
    error: str = ""


Run = Callable[[str, Sequence[Any]], Answer]
"""Runs a query with its bound values: texts, or {"date": ...} and {"timestamp": ...}."""


def read_line() -> Any:
    """Return the message of the parent process; None at the end."""
    line = sys.stdin.readline()
    return json.loads(line) if line else None


def answer_queries(run: Run, errors: type[Exception]) -> None:
    """Say that we are connected; answer each query until the parent closes the pipe.

    Errors of the driver are answers.
    """
    send(Answer({}, []))
    while (asked := read_line()) is not None:
        query, values = asked
        try:
            answer = run(query, values)
        except errors as error:
            answer = Answer({}, [], str(error))
        send(answer)


def send(answer: Answer) -> None:
    """Send a line to the parent process."""
    sys.stdout.buffer.write(msgspec_json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()
