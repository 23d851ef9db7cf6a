"""A PostgreSQL server of the tests' own, made from the system's programs and thrown away.

It is as users have theirs rather than as tests would like it: passwords are asked for and need
quoting in a URL, our role is no superuser, texts sort by language, and the server's time zone
is not UTC.
"""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import psycopg
from psycopg import sql
from sqlalchemy import URL

IN_ENCODING = "ENCODING '{}' LOCALE 'C' LOCALE_PROVIDER libc TEMPLATE template0"
"""Options of a database in another encoding than UTF-8."""
DEBIAN_PROGRAMS = Path("/usr/lib/postgresql")
ADMIN = "postgres"
ROLE = "archiver"

# The first two lines say where it listens; the next three trade what a crash would need for speed.
CONFIGURATION = """
unix_socket_directories = '{directory}'
port = {port}
fsync = off
synchronous_commit = off
full_page_writes = off
timezone = 'Asia/Kathmandu'
"""


@dataclass(frozen=True)
class Server:
    """A running server that only this process knows of. Both roles have the same password."""

    directory: Path
    port: int
    password: str = field(repr=False)

    @cached_property
    def version(self) -> str:
        """The server's own word for it, such as "15.18"."""
        with self.administer() as connection:
            return str(connection.info.parameter_status("server_version")).split()[0]

    @contextmanager
    def database(self, owner: str = ROLE, options: str = "") -> Iterator[str]:
        """Yield the URL of a new, empty database for `ROLE`; drop it in the end."""
        name = f"archive_{secrets.token_hex(6)}"
        with self.administer() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} STRATEGY file_copy {}").format(
                    sql.Identifier(name), sql.Identifier(owner), sql.SQL(cast("Any", options))
                )
            )
        url = URL.create("postgresql+psycopg", ROLE, self.password, "127.0.0.1", self.port, name)
        yield url.render_as_string(hide_password=False)
        with self.administer() as connection:
            connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def administer(self, database: str = ADMIN) -> psycopg.Connection:
        """Return a superuser's connection in autocommit mode, through the Unix socket."""
        return psycopg.connect(
            host=str(self.directory),
            port=self.port,
            user=ADMIN,
            password=self.password,
            dbname=database,
            autocommit=True,
        )


@contextmanager
def running_server(parent: Path | None = None) -> Iterator[Server]:
    """Yield a new server; stop it and remove its files, which are in `parent`, in the end.

    Raises:
        LookupError: this machine has no PostgreSQL server.
        RuntimeError: the server does not start; the text has its log.
    """
    programs = find_programs()
    directory = Path(tempfile.mkdtemp(prefix="pg-", dir=parent or roomy_folder()))
    try:
        server = Server(directory, free_port(), f"{secrets.token_urlsafe(16)}@/:%")
        create_cluster(programs, server)
        run(programs / "pg_ctl", "--wait", "--log", directory / "log", "start", directory=directory)
        try:
            create_role(server)
            yield server
        finally:
            run(programs / "pg_ctl", "--wait", "--mode", "immediate", "stop", directory=directory)
    finally:
        shutil.rmtree(directory)


def roomy_folder() -> Path:
    """Return where servers live: in memory where there is room, which is up to 5 times faster.

    Not in TMPDIR, which may be too long for the path of a socket or closed to `server_user`.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2 * 1024**3
    return memory if roomy else Path("/tmp")


def find_programs(debian: Path = DEBIAN_PROGRAMS) -> Path:
    """Return the folder of initdb and pg_ctl: of PATH, else of Debian's newest version."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = [path.parent for path in debian.glob("*/bin/initdb")]
    if not versions:
        raise LookupError(
            f"PostgreSQL: no initdb on PATH or in {debian}; install the server, version "
            "15 or newer (make test does; by hand: apt-get install postgresql)"
        )
    return max(versions, key=lambda programs: float(programs.parent.name))


def create_cluster(programs: Path, server: Server) -> None:
    """Make the server's files, and have it ask for passwords on the socket and on TCP alike."""
    directory = server.directory
    password = directory / "password"
    password.write_text(server.password)
    if user := server_user():
        shutil.chown(directory, user)
        shutil.chown(password, user)
    run(
        programs / "initdb",
        *("--username", ADMIN, "--pwfile", password, "--auth", "scram-sha-256", "--no-sync"),
        *("--encoding", "UTF8", "--locale", "C.UTF-8"),
        *("--locale-provider", "icu", "--icu-locale", "en-US"),
        directory=directory,
    )
    password.unlink()
    with (directory / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write(CONFIGURATION.format(directory=directory, port=server.port))


def create_role(server: Server) -> None:
    """Make the role that the program under test logs in as."""
    with server.administer() as connection:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                sql.Identifier(ROLE), sql.Literal(server.password)
            )
        )


def run(program: Path, *arguments: str | Path, directory: Path) -> None:
    """Run one of PostgreSQL's programs on the cluster in `directory`, never as root."""
    log = directory / "output"
    with log.open("w") as output:  # a pipe would stay open as long as the server
        done = subprocess.run(
            [program, "--pgdata", directory / "data", *arguments],
            env={"LC_ALL": "C.UTF-8"},
            cwd=directory,
            user=server_user(),
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        logs = [path.read_text() for path in (log, directory / "log") if path.exists()]
        raise RuntimeError("\n".join([f"{program.name} failed:", *logs]))


def server_user() -> str | None:
    """Return whom to run the server as: PostgreSQL refuses root. None is who we are."""
    if os.geteuid() != 0:
        return None
    return "postgres" if any(user.pw_name == "postgres" for user in pwd.getpwall()) else "nobody"


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
