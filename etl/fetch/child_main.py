"""The child process that fetches for one pass, and ends with it.

Python computes in one thread of a process at a time, and fetching takes as much of it as storing:
the two go on side by side. The child knows nothing of the database, keeps nothing, and ends at
once when the parent is gone.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from traceback import format_exc

from msgspec import msgpack

from etl import clock
from etl.fetch.child_process import STOP_SIGNAL
from etl.fetch.fetcher import RunFetcher
from etl.fetch.messages import Begin, Done, Give
from etl.fetch.pool import FetchPool
from etl.runtime import relax_garbage_collection, tune_heap
from etl.secrets.masking import mask


def serve(connection: "Connection[bytes, bytes]") -> None:
    """Fetch for the pass at the other end of `connection`, until its last batch is sent."""
    begin = msgpack.decode(connection.recv_bytes(), type=Begin)
    ahead = timedelta(seconds=begin.clock_ahead_s)
    pool = FetchPool(begin, RunFetcher(begin.config, lambda: clock.now() + ahead))
    for task in (_take_messages, _await_stop):
        threading.Thread(target=_or_exit, args=[task, connection, pool], daemon=True).start()
    is_over = False
    while not is_over:
        message = pool.receive()
        connection.send_bytes(msgpack.encode(message))
        is_over = getattr(message, "end", None) is not None


def _take_messages(connection: "Connection[bytes, bytes]", pool: FetchPool) -> None:
    decoder = msgpack.Decoder(Give | Done)
    while True:
        match decoder.decode(connection.recv_bytes()):
            case Give(targets, permits, drops_waiting):
                if drops_waiting:
                    pool.drop()
                if permits is not None:
                    pool.permit(permits)
                if targets is not None:
                    pool.give(targets)
            case Done():
                pool.done()


def _await_stop(_connection: "Connection[bytes, bytes]", pool: FetchPool) -> None:
    signal.sigwait({STOP_SIGNAL})
    pool.stop()


def _or_exit(
    task: Callable[["Connection[bytes, bytes]", FetchPool], None],
    connection: "Connection[bytes, bytes]",
    pool: FetchPool,
) -> None:
    """Run a thread's task; without one of its threads the pass would never end."""
    try:
        task(connection, pool)
    except EOFError:
        os._exit(0)  # the parent is gone
    except Exception:  # noqa: BLE001  written to stderr
        _fail()


def _fail() -> None:
    sys.stderr.write(mask(format_exc()))
    os._exit(1)


def main() -> None:
    """Serve the parent. The argument is the number of the socket's file descriptor."""
    tune_heap()
    relax_garbage_collection()
    try:
        serve(Connection(int(sys.argv[1])))
    except (EOFError, BrokenPipeError):
        pass
    except Exception:  # noqa: BLE001  written to stderr
        _fail()
    os._exit(0)  # whatever hangs in a request


if __name__ == "__main__":
    main()
