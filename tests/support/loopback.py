"""Keep the tests on this machine: an audit hook refuses connections beyond loopback.

The hook sees each `socket` of Python in this process: connections, datagrams, name lookups. It does
not see C libraries that open sockets themselves (libpq connects to the tests' own server) or child
processes, which inherit no hook: the tests give these loopback addresses only.
"""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address
from typing import Any

CONNECTIONS = ("socket.connect", "socket.sendto", "socket.sendmsg")
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname")

_refusals: list[str] = []


@contextmanager
def refusals() -> Iterator[list[str]]:
    """Yield a list that at the end has what the hook refused meanwhile."""
    refused: list[str] = []
    before = len(_refusals)
    yield refused
    refused += _refusals[before:]
    del _refusals[before:]


def refuse_other_machines(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise ConnectionRefusedError where `event` would reach another machine.

    The program under test may handle the error as it handles a dead network, so it is noted, too.
    """
    if event in CONNECTIONS:
        connection, address = arguments[0], arguments[-1]
        is_refused = connection.family in {socket.AF_INET, socket.AF_INET6} and (
            address is not None and not is_loopback(address[0])
        )
        target = f"{address[0]}:{address[1]}" if is_refused else ""
    elif event in LOOKUPS:
        target = _text(arguments[0])
        is_refused = bool(target) and not is_address(target) and not is_loopback(target)
    else:
        return
    if is_refused:
        _refusals.append(f"{event} {target}: tests may reach this machine only; give 127.0.0.1")
        raise ConnectionRefusedError(_refusals[-1])


def is_loopback(host: str | bytes) -> bool:
    """Tell if `host` is an address or a name of this machine's loopback."""
    text = _text(host)
    if not is_address(text):
        return text == "localhost"
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def is_address(host: str) -> bool:
    """Tell if `host` is an IP address, which needs no lookup."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _text(host: str | bytes | None) -> str:
    return host.decode() if isinstance(host, bytes) else host or ""


sys.addaudithook(refuse_other_machines)
