"""Hosts on one machine: network namespaces joined by a bridge, with links that can be cut.

Needs root and iproute2. Names are random; all that is made is removed in the end.
"""

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

NAMESPACES = Path("/run/netns")
ANOTHER_CLOCK = """
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo
from time_machine import travel
travel(datetime.now(ZoneInfo("UTC")) + timedelta(hours={hours}), tick=True).start()
"""


@dataclass
class Host:
    """A network namespace with one link to the others."""

    name: str
    address: str
    link: str
    """The end of its link that is at the bridge."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """The command that runs another one on this host, in its place."""
        return ("nsenter", f"--net={NAMESPACES / self.name}")

    def cut(self) -> None:
        """Cut the link: packets are lost, and nobody is told."""
        ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Connect the link again."""
        ip("link", "set", self.link, "up")

    def pids(self) -> list[int]:
        """Return the processes that run on this host."""
        return [int(pid) for pid in ip("netns", "pids", self.name).split()]


@dataclass
class Network:
    """Hosts that reach each other, and this machine by `address`."""

    address: str
    subnet: str
    hosts: list[Host] = field(default_factory=list)


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, encoding="utf-8")
    return done.stdout


@contextmanager
def network(number: int) -> Iterator[Network]:
    """Make a number of hosts; remove them, and end their processes, in the end."""
    tag = f"ra{secrets.token_hex(3)}"
    subnet = f"10.{secrets.randbelow(50) + 200}.{secrets.randbelow(250)}"
    made = Network(f"{subnet}.1", f"{subnet}.0/24")
    with ExitStack() as stack:
        ip("link", "add", tag, "type", "bridge")
        stack.callback(ip, "link", "del", tag)
        ip("addr", "add", f"{made.address}/24", "dev", tag)
        ip("link", "set", tag, "up")
        for position in range(number):
            host = Host(f"{tag}-{position}", f"{subnet}.{position + 11}", f"{tag}{position}b")
            inner = f"{tag}{position}a"
            ip("netns", "add", host.name)
            stack.callback(ip, "netns", "del", host.name)  # and the link with it
            stack.callback(end_all, host)
            ip("link", "add", host.link, "type", "veth", "peer", inner, "netns", host.name)
            ip("link", "set", host.link, "master", tag)
            inside = ("-n", host.name)
            ip(*inside, "addr", "add", f"{host.address}/24", "dev", inner)
            ip(*inside, "link", "set", inner, "up")
            ip(*inside, "link", "set", "lo", "up")
            host.mend()
            made.hosts.append(host)
        yield made


def end_all(host: Host) -> None:
    """Kill the processes of a host, which nobody else has."""
    while pids := [pid for pid in host.pids() if not is_zombie(pid)]:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def is_zombie(pid: int) -> bool:
    """Tell whether a process has ended, and its parent does not know yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def another_clock(folder: Path, hours: int) -> dict[str, str]:
    """Return the variables of processes of Python whose clock is off, and of their children.

    Steady clocks stay right. libfaketime cannot be used: with a clock set back `time.sleep` fails,
    set ahead it returns at once.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(ANOTHER_CLOCK.format(hours=hours))
    return {"PYTHONPATH": str(folder)}
