"""An HTTP server on loopback that answers exactly as badly as a test wants it to."""

import contextlib
import os
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

Answer = Callable[[socket.socket], None]
"""What is done with a connection after each request that came on it."""

END_OF_HEAD = b"\r\n\r\n"


class Request(NamedTuple):
    """What a client asked: the target as it stood in the request line, header names lower-case."""

    method: str
    target: str
    headers: dict[str, str]


class Faulty(socketserver.ThreadingTCPServer):
    """Gives each request `answer`; `requests` and `connections` tell what has come so far."""

    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.answer: Answer = send(reply())
        self.requests: list[Request] = []
        self.connections = 0
        self.port: int = self.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"


class _Handler(socketserver.StreamRequestHandler):
    server: Faulty
    timeout = 10

    def handle(self) -> None:
        self.server.connections += 1
        with contextlib.suppress(OSError, ValueError):  # the client went away, or talked nonsense
            while line := self.rfile.readline().decode():
                method, target, _version = line.split()
                self.server.requests.append(Request(method, target, self._headers()))
                self.server.answer(self.connection)

    def _headers(self) -> dict[str, str]:
        headers = {}
        while (line := self.rfile.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return headers


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Faulty]:
    """Run a server that answers 200 until it is told otherwise."""
    with Faulty(tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def head(status: str, *headers: str) -> bytes:
    """Return a status line and headers as they are sent, the empty line included."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers]).encode() + END_OF_HEAD


def reply(body: bytes = b'{"result": {}}', status: str = "200 OK", *headers: str) -> bytes:
    """Return a whole and correct answer."""
    return head(status, *headers, f"Content-Length: {len(body)}") + body


def chunk(data: bytes) -> bytes:
    """Return `data` as one chunk of a chunked body; an empty one ends it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def send(data: bytes) -> Answer:
    """Send `data`, and keep the connection."""
    return lambda connection: connection.sendall(data)


def send_and_close(data: bytes) -> Answer:
    """Send `data` and close the connection, whatever `data` promised."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_RDWR)

    return answer


def drip(start: bytes, drop: bytes, every_s: float) -> Answer:
    """Send `start`, then one `drop` after the other until the client has had enough."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(drop)
            time.sleep(every_s)

    return answer


def stall(start: bytes) -> Answer:
    """Send `start` and then nothing more, until the client goes away."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        connection.recv(1)

    return answer


def reset(connection: socket.socket) -> None:
    """Break the connection off with a TCP reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())
