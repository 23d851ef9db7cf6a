"""A pass's hold on the process that fetches for it (`fetch_process`)."""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from msgspec import DecodeError, Raw

from etl.answers.outcome import Outcome, Target
from etl.errors import ArchiverError
from etl.fetch.wire import (
    Begin,
    Close,
    End,
    Interrupt,
    Line,
    Offer,
    Order,
    Report,
    State,
    Written,
    unpack,
)

if TYPE_CHECKING:  # it comes with the database, which takes longer to load than the rest
    from etl.ledger.ledger import Claim


OURS_ALONE = {"RESULT_ARCHIVER__DATABASE__URL", "PGPASSWORD"}
"""Variables with the database's password, which who only fetches need not have."""


class FetchingLostError(ArchiverError):
    """The process that fetches ended, and not by our doing, or did not begin."""


class Running(Protocol):
    """As much of a `subprocess.Popen` as is needed here."""

    stdin: BinaryIO
    stdout: BinaryIO

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""

    def wait(self) -> int:
        """Wait for its end, and return the exit code."""

    def kill(self) -> None:
        """End it."""


def launch() -> Running:
    """Start the process that fetches.

    Raises:
        FetchingLostError: the system has no room for it.
    """
    modules = [each or str(Path.cwd()) for each in sys.path]
    environment = {name: value for name, value in os.environ.items() if name not in OURS_ALONE}
    reports, their_end = os.pipe()
    try:
        with _signals_blocked():
            process = subprocess.Popen(  # noqa: S603  no argument is from outside
                # Safe: the folder that we are in is none to import from, unless it was for us.
                [sys.executable, "-P", "-m", "etl.fetch.fetch_process", str(their_end)],
                env=environment | {"PYTHONPATH": os.pathsep.join(modules)},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[their_end],
                start_new_session=True,  # Ctrl-C is for us
            )
    except OSError as error:
        os.close(reports)
        raise FetchingLostError(
            f"the process that fetches cannot be started: {error.strerror}; make room for it"
        ) from None
    finally:
        os.close(their_end)
    process.stdout = os.fdopen(reports, "rb")
    return cast("Running", process)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Have a process that is started meanwhile never hear them: we do, and tell it what next."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class FetchProcess:
    """The process that fetches, for one pass after the other; started when it is needed."""

    def __init__(self) -> None:
        self._running: Running | None = None

    def start(self) -> Running:
        """Start it, unless it runs."""
        if self._running is None or self._running.poll() is not None:
            self.close()
            self._running = launch()
        return self._running

    def close(self) -> None:
        """Have it end."""
        if self._running is not None:
            with suppress(BrokenPipeError):  # it is gone already, and orders were left
                self._running.stdin.close()
            self._running.wait()
            self._running.stdout.close()
            self._running = None


class Fetching:
    """What a pass has fetched: runs are offered, and come back in batches of outcomes.

    `news` is set when there is something to do: a batch came, or jobs run out.
    """

    def __init__(self, process: Running, begin: Begin, news: threading.Event) -> None:
        self.state = State()
        self.requests = 0
        self._process = process
        self._news = news
        self._offers = 0
        self._claims: dict[str, Claim] = {}
        self._batches: deque[Raw] = deque()
        self._end: End | None = None
        self._line: Line[Report] = Line(process.stdout, process.stdin, Report)
        self._is_closed = False
        self._listening = threading.Thread(target=self._listen, name="reports", daemon=True)
        self._listening.start()
        self._send(begin)

    def _listen(self) -> None:
        with suppress(DecodeError):  # then it is lost, as if it had ended
            while self._end is None and (report := self._line.receive()):
                self.requests = report.requests
                if report.runs:
                    self._batches.append(report.packed)
                self.state, self._end = report.state, report.end
                self._news.set()
        self._news.set()

    def _send(self, order: Order) -> None:
        try:
            self._line.send(order)
        except OSError:
            self._listening.join()  # which tells the end, too

    def offer(self, claims: Sequence["Claim"]) -> None:
        """Have runs fetched."""
        self._claims |= {claim.run_id: claim for claim in claims}
        self._offers += 1
        self._send(Offer([Target(c.run_id, c.source, c.read_token, c.fingerprint) for c in claims]))

    @property
    def is_low(self) -> bool:
        """Whether it is time to offer more runs."""
        return self.state.is_low and self.state.offers == self._offers

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, and nothing will be unless more is offered."""
        return self.state.is_idle and self.state.offers == self._offers

    def interrupt(self, reason: str) -> None:
        """Have no more requests started."""
        self._send(Interrupt(reason))

    def take(self) -> list[Raw]:
        """Return the batches that came since the last call.

        Raises:
            FetchingLostError: there will be no more.
        """
        is_over = not self._listening.is_alive()  # first: then there are no more than we find
        batches = [self._batches.popleft() for _ in range(len(self._batches))]
        if is_over and not batches and not self._is_closed:
            raise self._lost()
        return batches

    def outcomes(self, batch: Raw) -> dict["Claim", Outcome]:
        """Return what became of whom."""
        return {self._claims[outcome.run_id]: outcome for outcome in unpack(batch)}

    def written(self, claims: Collection["Claim"]) -> None:
        """Note that a batch, which was of `claims`, is out of the way."""
        for claim in claims:
            del self._claims[claim.run_id]
        self._send(Written())

    def close(self) -> End:
        """End the pass, and return how it ended; `take` then has what is left to be written.

        Raises:
            FetchingLostError: it is not known how it ended.
        """
        self._send(Close())
        self._is_closed = True
        self._listening.join()
        if self._end is None:
            raise self._lost()
        return self._end

    def _lost(self) -> FetchingLostError:
        self._process.kill()  # whatever is left of it
        return FetchingLostError(
            f"the process that fetches ended by itself (exit code {self._process.wait()});"
            " what had come from it is stored, the rest stays due"
        )
