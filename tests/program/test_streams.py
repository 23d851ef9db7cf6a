"""Output that nobody reads, or that a terminal cannot show, never changes how a command ends."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import fake_api
from tests.support.fake_api import result
from tests.support.program import COMMAND, Done, Program, bare_program, program

SHOP = "店 Größe ½"
FAILED = {"failed": 1, "passed": 0, "aborted": 0, "pending": 0, "unresolved": 0}


@pytest.fixture(scope="module")
def archiver(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """An archive with a failed run, whose names need more than Latin-1."""
    folder = tmp_path_factory.mktemp("archive")
    with fake_api.serving() as api:
        test = {"id": "t", "name": "Zahlt 支払", "status": "failed", "results": FAILED}
        api.answers["r-1"] = [
            result(status="failed", application=SHOP, tests=[test], results=FAILED)
        ]
        its = program(folder, f"sqlite:///{folder}/archive.db", api.url)
        assert its.call("ingest", "r-1").exit_code == 0
    return its


def run_with(archiver: Program, command: Sequence[str], stdout: int, stderr: int) -> int:
    """Return the exit code of a command whose stdout or stderr is a file descriptor of ours."""
    done = subprocess.run(
        [*COMMAND, *command],
        cwd=archiver.folder,
        env=archiver.environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        check=False,
    )
    return done.returncode


def pipe_without_a_reader() -> int:
    outlet, inlet = os.pipe()
    os.close(outlet)
    return inlet


STREAMS = ["stdout", "stderr"]
CODES = [
    ("gate r-1 --max-failed 0", 1),
    ("gate r-1 --max-failed 0 --json", 1),
    ("gate r-1 --max-failed 1", 0),
    ("retry r-2", 1),
    ("show r-1", 0),
    ("report overview --from 2020-01-01 --json", 0),
    ("status --help", 0),
    ("--help", 0),
    ("verify", 0),
    ("show r-2", 2),
    ("statsu", 2),
]


@pytest.mark.parametrize(("command", "exit_code"), CODES)
@pytest.mark.parametrize("stream", STREAMS)
def test_a_reader_that_goes_away_keeps_the_exit_code(
    archiver: Program, command: str, exit_code: int, stream: str
) -> None:
    inlet = pipe_without_a_reader()
    stdout, stderr = (inlet if stream == each else subprocess.DEVNULL for each in STREAMS)
    try:
        assert run_with(archiver, command.split(), stdout, stderr) == exit_code
    finally:
        os.close(inlet)


@pytest.mark.parametrize(("command", "exit_code"), CODES)
def test_a_closed_stdout_keeps_the_exit_code(
    archiver: Program, command: str, exit_code: int
) -> None:
    shell = ["/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh", *COMMAND, *command.split()]
    done = subprocess.run(shell, cwd=archiver.folder, env=archiver.environment, check=False)
    assert done.returncode == exit_code


@pytest.mark.parametrize("command", ["show r-1", "--help", "report overview --format csv"])
def test_a_full_disk_is_an_error_of_one_line(archiver: Program, command: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *command.split()],
            cwd=archiver.folder,
            env=archiver.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert line == (
        "error: the output cannot be written: No space left on device; the rest of it is lost"
    )
    assert done.returncode == 1


# --- encodings of the terminal ---


def run_in(archiver: Program, encoding: str, *command: str) -> Done:
    shell = archiver.given(PYTHONIOENCODING=encoding)
    done = subprocess.run(
        [*COMMAND, *command],
        cwd=shell.folder,
        env=shell.environment,
        capture_output=True,
        encoding=encoding,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "shift-jis", "utf-8"])
@pytest.mark.parametrize(
    "command",
    [
        "report overview --from 2020-01-01",
        "report overview --from 2020-01-01 --format csv",
        "report overview --from 2020-01-01 --format markdown",
        "report overview --from 2020-01-01 --json",
        "report --format html",
        "show r-1",
        "status",
        "verify",
    ],
)
def test_a_character_that_the_terminal_lacks_is_an_escape(
    archiver: Program, encoding: str, command: str
) -> None:
    done = run_in(archiver, encoding, *command.split())
    assert (done.exit_code, done.stderr.count("error")) == (0, 0)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", r"\u5e97 Gr\xf6\xdfe \xbd"), ("latin-1", r"\u5e97 Größe ½"), ("utf-8", SHOP)],
)
def test_what_the_terminal_has_is_shown(archiver: Program, encoding: str, shown: str) -> None:
    done = run_in(
        archiver, encoding, "report", "overview", "--from", "2020-01-01", "--format", "csv"
    )
    assert shown in done.stdout


def test_an_error_message_is_shown_in_ascii(archiver: Program) -> None:
    done = run_in(archiver, "ascii", "show", "店")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: run \\u5e97: is not tracked; `result-archiver track` adds it\n"


# --- arguments ---


@pytest.mark.parametrize(
    "command",
    [
        [b"show", b"Caf\xe9"],
        [b"report", b"overview", b"--application", b"Caf\xe9"],
        [b"gate", b"--application", b"\xff", b"--plan", b"x", b"--max-failed", b"0"],
        [b"alias", b"add", b"\xc3", b"b", b"--application", b"Shop"],
        [b"track", b"r-2", b"--label", b"b=\xe9"],
        [b"export", b"--sqlite", b"Caf\xe9.db"],
        [b"report", b"--output", b"\xe9.html", b"--format", b"html"],
        [b"--config", b"\xe9.toml", b"status"],
    ],
)
def test_an_argument_that_is_not_text_is_refused(archiver: Program, command: list[bytes]) -> None:
    before = sorted(archiver.folder.iterdir())
    done = subprocess.run(
        [*COMMAND, *command],
        cwd=archiver.folder,
        env=archiver.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    [bad] = [each for each in command if not each.isascii()]
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: the argument {bad!r} is not text in UTF-8, the encoding of this locale;"
        " give it in this encoding; rename a file that has such a name\n"
    )
    assert sorted(archiver.folder.iterdir()) == before


def test_an_argument_beyond_ascii_is_taken(tmp_path: Path) -> None:
    done = bare_program(tmp_path).run("--config", "größe.toml", "init")
    assert done.exit_code == 0
    assert (tmp_path / "größe.toml").exists()
