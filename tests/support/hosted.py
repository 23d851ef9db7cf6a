"""The fetching side within our own process: a clock that a test has set is seen there, too."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO
from unittest import mock

from etl.fetch import fetch_process, fetching


class Hosted:
    """Stands in for a `subprocess.Popen`: pipes and messages are the same."""

    def __init__(self) -> None:
        orders, self.stdin = _pipe()
        self.stdout, reports = _pipe()
        self._thread = threading.Thread(target=self._serve, args=[orders, reports], daemon=True)
        self._thread.start()

    def _serve(self, orders: BinaryIO, reports: BinaryIO) -> None:
        with orders, reports:
            fetch_process.serve(orders, reports)

    def poll(self) -> int | None:
        return None if self._thread.is_alive() else 0

    def wait(self) -> int:
        self._thread.join()
        return 0

    def kill(self) -> None:
        self.stdin.close()


def _pipe() -> tuple[BinaryIO, BinaryIO]:
    outlet, inlet = os.pipe()
    return os.fdopen(outlet, "rb"), os.fdopen(inlet, "wb")


@contextmanager
def hosted() -> Iterator[None]:
    """Have what fetches be threads of ours instead of a process."""
    with mock.patch.object(fetching, "launch", Hosted):
        yield
