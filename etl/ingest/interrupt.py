"""The signal that asks a pass to stop."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupt:
    """Remembers the signal, and calls back when it comes."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._wakers: list[int] = []

    @property
    def name(self) -> str:
        """The signal's name, such as SIGTERM; "" before one came."""
        return signal.Signals(self.signal).name if self.signal else ""

    @contextmanager
    def listening(self) -> Iterator["Interrupt"]:
        """Take SIGINT and SIGTERM, once each; a second one kills as usual."""
        previous: dict[int, Any] = {}

        def take(number: int, _frame: FrameType | None) -> None:
            signal.signal(number, previous[number])
            self.set(number)

        for wanted in (signal.SIGINT, signal.SIGTERM):
            previous[wanted] = signal.signal(wanted, take)
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def set(self, number: int) -> None:
        """Act as if the signal came. Takes no lock: signal handlers call it."""
        self.signal = number
        for waker in self._wakers:
            os.write(waker, b"!")

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback`, in a thread of its own, once a signal comes within the context."""
        outlet, inlet = os.pipe()

        def wait() -> None:
            if os.read(outlet, 1) == b"!":
                callback()

        waiting = threading.Thread(target=wait, name="interrupt", daemon=True)
        waiting.start()
        self._wakers.append(inlet)
        if self.signal is not None:
            os.write(inlet, b"!")
        try:
            yield
        finally:
            self._wakers.remove(inlet)
            os.write(inlet, b".")
            waiting.join()
            os.close(outlet)
            os.close(inlet)
