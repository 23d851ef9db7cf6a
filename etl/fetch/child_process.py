"""The parent's end of the child process that fetches (`child_main`)."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from msgspec import DecodeError, msgpack

from etl.answers.outcome import Target
from etl.errors import FetchingLostError, OutOfFilesError, is_out_of_files
from etl.fetch.messages import Ask, Batch, Begin, Done, Give
from etl.fetch.permits import Permits

DATABASE_VARIABLES = {"RESULT_ARCHIVER__DATABASE__URL", "PGPASSWORD"}
"""Environment variables with the database's password, which the child must not have."""
STOP_SIGNAL = signal.SIGUSR1
"""Tells the child to start no more requests. SIGINT and SIGTERM it leaves to the parent."""


class ChildProcess:
    """Fetches for one pass in a process of its own, with the methods of `FetchPool`."""

    def __init__(self, begin: Begin) -> None:
        """Start the child. Raises FetchingLostError: the system has no room for it."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._connection: Connection[bytes, bytes] = Connection(ours.detach())
            try:
                self._process = _launch(theirs.fileno())
            except OSError as error:
                self._connection.close()
                if is_out_of_files(error):
                    raise OutOfFilesError from None
                raise FetchingLostError(
                    f"the process that fetches cannot be started: {error.strerror};"
                    " make room for it"
                ) from None
        self._decoder = msgpack.Decoder(Ask | Batch)
        self._sending = threading.Lock()
        self._send(begin)

    def receive(self) -> Ask | Batch:
        """Wait for a message, and return it.

        Raises:
            FetchingLostError: there will be no more.
        """
        try:
            message: Ask | Batch = self._decoder.decode(self._connection.recv_bytes())
        except (EOFError, OSError, DecodeError):
            self._process.kill()
            raise FetchingLostError(
                f"the process that fetches ended by itself (exit code {self._process.wait()});"
                " its batches are stored, the rest stays due"
            ) from None
        return message

    def give(self, targets: Sequence[Target]) -> None:
        """Send the targets that were asked for."""
        self._send(Give(list(targets)))

    def drop(self) -> None:
        """Drop the targets that wait to be fetched."""
        self._send(Give(drops_waiting=True))

    def permit(self, permits: Permits) -> None:
        """Send permits."""
        self._send(Give(permits=permits))

    def done(self) -> None:
        """Report a batch as committed."""
        self._send(Done())

    def stop(self) -> None:
        """Start no more requests, and wait for those under way."""
        self._process.send_signal(STOP_SIGNAL)

    def give_up(self) -> None:
        """Wait no longer for requests under way."""
        self._process.kill()

    def close(self) -> None:
        """End the child, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _send(self, message: Begin | Give | Done) -> None:
        with self._sending, suppress(OSError):  # the child is gone: `receive` says so
            self._connection.send_bytes(msgpack.encode(message))


def _launch(descriptor: int) -> "subprocess.Popen[bytes]":
    modules = [each or str(Path.cwd()) for each in sys.path]
    environment = {
        name: value for name, value in os.environ.items() if name not in DATABASE_VARIABLES
    }
    with _signals_blocked():
        return subprocess.Popen(  # noqa: S603  no argument is from outside
            # -P: never import from the user's folder, unless we were told to.
            [sys.executable, "-P", "-m", "etl.fetch.child_main", str(descriptor)],
            env=environment | {"PYTHONPATH": os.pathsep.join(modules)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[descriptor],
            start_new_session=True,  # Ctrl-C is for us
        )


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals in a child started meanwhile: it waits for STOP_SIGNAL, and heeds no other."""
    blocked = {signal.SIGINT, signal.SIGTERM, STOP_SIGNAL}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
