"""Clients of ODBC and JDBC, as BI tools have them, each in a process and a time zone of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from msgspec import json as msgspec_json

from tests.support.line_protocol import Answer
from tests.support.month import Month, Row

ROOT = Path(__file__).parents[2]
INSTALL = "install the drivers (make test does; by hand: .ci/setup drivers)"


class DriverClient:
    """Asks an archive by a driver."""

    def __init__(self, lines_in: IO[str], lines_out: IO[str]) -> None:
        self._lines_in = lines_in
        self._lines_out = lines_out

    def ask(self, query: str, *values: Any) -> Answer:
        """Return the rows of a query with bound values.

        Raises:
            RuntimeError: the driver's error.
        """
        self.send([query, values])
        answer = msgspec_json.decode(self._lines_out.readline(), type=Answer)
        if answer.error:
            raise RuntimeError(answer.error)
        return answer

    def rows(self, query: str, *values: Any) -> list[Row]:
        """Return rows by column name."""
        answer = self.ask(query, *values)
        return [dict(zip(answer.types, row, strict=True)) for row in answer.rows]

    def column(self, query: str, *values: Any) -> list[Any]:
        """Return the values of the one column."""
        return [value for (value,) in self.ask(query, *values).rows]

    def send(self, content: Any) -> None:
        """Send a line to the process."""
        self._lines_in.write(f"{json.dumps(content)}\n")
        self._lines_in.flush()


@contextmanager
def odbc(month: Month, zone: str) -> Iterator[DriverClient]:
    """Give a client of psqlODBC or of the SQLite ODBC driver."""
    url = month.engine.url
    if month.dialect == "sqlite":
        text = f"Driver=SQLite3;Database={url.database}"
    else:
        password = (url.password or "").replace("}", "}}")
        text = (
            f"Driver=PostgreSQL Unicode;Server={url.host};Port={url.port};Database={url.database};"
            f"Uid={month.reader};Pwd={{{password}}};BoolsAsChar=0"
        )
    with client("odbc_client", zone, text) as asking:
        if month.dialect == "postgresql":
            asking.ask(f"SELECT set_config('TimeZone', '{zone}', false)")
        yield asking


@contextmanager
def jdbc(month: Month, zone: str, options: str = "?date_class=TEXT") -> Iterator[DriverClient]:
    """Give a client of pgJDBC or of the SQLite JDBC driver, which takes `options`."""
    url = month.engine.url
    if month.dialect == "sqlite":
        connection: list[Any] = [f"jdbc:sqlite:{url.database}{options}", {}]
    else:
        properties = {"user": month.reader, "password": url.password}
        connection = [f"jdbc:postgresql://{url.host}:{url.port}/{url.database}", properties]
    with client("jdbc_client", zone, connection) as asking:
        yield asking


@contextmanager
def client(name: str, zone: str, connection: Sequence[Any]) -> Iterator[DriverClient]:
    """Run a client's program in a time zone, and connect it.

    Raises:
        LookupError: it could not be connected; stderr tells why.
    """
    with subprocess.Popen(
        [sys.executable, "-m", f"tests.support.{name}"],
        cwd=ROOT,
        env={"PATH": os.defpath, "TZ": zone, "LC_ALL": "C.UTF-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        asking = DriverClient(process.stdin, process.stdout)
        asking.send(connection)
        if not process.stdout.readline():
            raise LookupError(f"{name}: no connection; {INSTALL}")
        yield asking
        process.stdin.close()
