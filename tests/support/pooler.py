"""A connection pooler before the tests' PostgreSQL server: pgbouncer in transaction mode."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import make_url

from tests.support.postgres import Server, free_port, server_user

CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {directory}/users
pool_mode = transaction
default_pool_size = 3
logfile = {directory}/log
"""
PATIENCE_S = 10


@contextmanager
def pooled(server: Server, url: str) -> Iterator[str]:
    """Yield the URL of the same database through a pooler of its own.

    Raises:
        LookupError: this machine has no pgbouncer.
    """
    own_port, user = free_port(), server_user()
    with TemporaryDirectory(dir=server.directory) as name:
        directory = Path(name)
        users = directory / "users"
        password = server.password.replace('"', '""')
        users.write_text(f'"{make_url(url).username}" "{password}"\n')
        settings = directory / "pgbouncer.ini"
        settings.write_text(
            CONFIGURATION.format(port=server.port, own_port=own_port, directory=directory)
        )
        if user:
            for path in (directory, users, settings):
                shutil.chown(path, user)
        with subprocess.Popen([find_pgbouncer(), "--quiet", settings], user=user) as pooler:
            try:
                wait_for(own_port)
                yield make_url(url).set(port=own_port).render_as_string(hide_password=False)
            finally:
                pooler.terminate()


def find_pgbouncer() -> str:
    found = shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if found is None:
        raise LookupError("pgbouncer is missing (make test installs it; by hand: apt-get install)")
    return found


def wait_for(port: int) -> None:
    """Wait until a port accepts connections."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return
