"""Runs the sandbox on loopback: beside a test or a demo in a thread, or in the foreground."""

import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from etl.errors import UsageError
from etl.sandbox.api import App
from etl.sandbox.world import World
from etl.sandbox.world_clock import Clock

HOST = "127.0.0.1"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox that is being served. `requests` counts the requests for each run's result."""

    url: str
    world: World
    clock: Clock
    requests: Counter[str]


@contextmanager
def running(world: World, clock: Clock, port: int = 0, latency_ms: float = 0) -> Iterator[Sandbox]:
    """Serve the world from a thread for as long as the context lasts; port 0 is any free one.

    A UsageError if the port cannot be had.
    """
    app = App(world, clock, latency_ms)
    with _listening(port) as listener:
        server = uvicorn.Server(_config(app))
        thread = threading.Thread(
            target=server.run, args=([listener],), name="sandbox", daemon=True
        )
        url = f"http://{HOST}:{listener.getsockname()[1]}"
        thread.start()
        _wait_until_started(server, thread)
        try:
            yield Sandbox(url, world, clock, app.requests)
        finally:
            server.should_exit = True
            thread.join()


def serve(
    world: World,
    clock: Clock,
    on_ready: Callable[[Sandbox], None],
    port: int = 0,
    latency_ms: float = 0,
) -> None:
    """Serve the world until SIGINT or SIGTERM, then return. Calls `on_ready` once it listens.

    Only for the main thread. A UsageError if the port cannot be had.
    """
    # Blocked, a signal waits for sigwait: none is lost, and none interrupts anything. The
    # server's thread inherits this, so it has to come first.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        with running(world, clock, port, latency_ms) as sandbox:
            on_ready(sandbox)
            signal.sigwait(STOP_SIGNALS)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        proxy_headers=False,
        server_header=False,
        log_config=None,
        access_log=False,  # it would show the keys
        timeout_keep_alive=75,  # longer than a client's pause between two passes, as servers have
        timeout_graceful_shutdown=1,
    )


def _listening(port: int) -> socket.socket:
    # With the protocol spelt out: only then does asyncio switch Nagle's algorithm off, which
    # would make each answer on a connection that is kept alive wait 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "there is no such port"
        raise UsageError(
            f"port {port} on {HOST} cannot be used ({reason}); give another, or 0 for any free one"
        ) from None
    return listener


def _wait_until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the sandbox's thread ended before it listened")
        time.sleep(0.002)
