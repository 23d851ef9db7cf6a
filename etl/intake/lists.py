"""Read run lists from files, standard input and watched folders; `formats` parses them.

Each bad line is printed on stderr as file:line, and the rest goes on.
"""

import errno
import glob
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sqlalchemy import Engine

from etl import display
from etl.config.settings import Config
from etl.db import database
from etl.errors import UsageError
from etl.intake.entries import BadLine, ListedRun, merge_runs
from etl.intake.formats import read_entries
from etl.ledger import tracking
from etl.ledger.tracking import Entry
from etl.secrets.masking import Secret
from etl.secrets.vault import TokenVault


class Given:
    """Runs as they come out of their lists, once; `bad_lines` counts those left out so far."""

    def __init__(self, entries: Iterable[ListedRun | None]) -> None:
        self.bad_lines = 0
        self.entries = entries

    @property
    def runs(self) -> Iterator[ListedRun]:
        """The runs, each as often as it is listed."""
        for run in self.entries:
            if run is None:
                self.bad_lines += 1
            else:
                yield run

    def refuse_second_accounts(self, engine: Engine, batch: list[ListedRun]) -> list[ListedRun]:
        """Return the runs of `batch` without those listed for another account than their own.

        The others are bad lines: an archive has one run for a run ID, of one account.
        """
        if not any(run.source for run in batch):
            return batch
        with database.reading(engine) as connection:
            accounts = tracking.read_accounts(connection, [run.run_id for run in batch])
        accepted = []
        for run in batch:
            account = accounts.setdefault(run.run_id, run.source) if run.source else None
            if account == run.source:
                accepted.append(run)
                continue
            self.bad_lines += 1
            display.note(
                f"{run.place}: run {run.run_id}: belongs to source {account}, not {run.source};"
                f" correct the list, or archive {run.source} in a database of its own"
            )
        return accepted


def read(names: Sequence[str], config: Config) -> Given:
    """Return the runs of the lists called `names` (- is standard input).

    A list is opened once, when its turn comes: a pipe gives its content to one reader.

    Raises:
        UsageError: a list cannot be read; none was begun with.
    """
    distinct = list(dict.fromkeys(names))
    for name in distinct:
        _check_readable(name)
    return Given(entry for name in distinct for entry in _read_one(name, config))


def read_watched(config: Config) -> Given:
    """Return the runs of the files that `runs.sources` names now, each read once.

    A file that cannot be read, or is gone again, counts as a bad line: the others go on. A
    warning names each pattern that matches no file.
    """
    for pattern in find_missing(config):
        display.note(f"warning: runs.sources: {pattern}: there is no such file; nothing was read")
    files = {file for pattern in config.runs.sources for file in _find_files(pattern)}
    return Given(entry for name in sorted(files) for entry in _read_watched_one(name, config))


def find_missing(config: Config) -> list[str]:
    """Return the patterns of `runs.sources` that match no file now, as they were written."""
    return [
        _spell_literally(pattern) for pattern in config.runs.sources if not _find_files(pattern)
    ]


def _find_files(pattern: str) -> set[str]:
    """Return the files that `pattern` matches, or that have it for their name, brackets and all."""
    literal = _spell_literally(pattern)
    files = set(glob.glob(pattern))  # noqa: PTH207  absolute patterns
    return files | {literal} if Path(literal).exists() else files


def _spell_literally(pattern: str) -> str:
    """Undo `glob.escape`, by which the settings spell the folder of a pattern."""
    return re.sub(r"\[([*?[])\]", r"\1", pattern)


def _read_watched_one(name: str, config: Config) -> Iterator[ListedRun | None]:
    if Path(name).is_fifo():  # it would block the pass until a program writes to it
        display.note(f"{name}: cannot be read: is a pipe; give it as --from")
        yield None
        return
    try:
        yield from _read_one(name, config)
    except UsageError as error:
        display.note(str(error))
        yield None


def _read_one(name: str, config: Config) -> Iterator[ListedRun | None]:
    """Yield the runs of a list, and None for each bad line, after printing it."""
    shown = "stdin" if name == "-" else name
    content = _read_content(name)
    if name == "-" and not content.strip():
        display.note("stdin: there is nothing in it; did the command before the pipe fail?")
        yield None
    listed = read_entries(content, shown)
    del content  # long lists are not to be in memory twice
    first_cleaned = None
    for entry in listed:
        if isinstance(entry, BadLine):
            display.note(f"{shown}:{entry.line}: {entry.reason}")
            yield None
        elif entry.source is not None and entry.source not in config.sources:
            unknown = describe_unknown_source(entry.source, config)
            display.note(f"{entry.place}: run {display.safe(entry.run_id)}: {unknown}")
            yield None
        else:
            if entry.is_cleaned and first_cleaned is None:
                first_cleaned = entry.place
            yield entry
    if first_cleaned is not None:
        display.note(f"{first_cleaned}: invisible characters removed, here and further down")


def describe_unknown_source(source: str, config: Config) -> str:
    """Say that a source is not configured, and which ones are."""
    return f"source {display.safe(source)} is not configured; there are {', '.join(config.sources)}"


def entries(runs: Sequence[ListedRun], vault: TokenVault) -> list[Entry]:
    """Return `runs` for the ledger: entries of one run merged, tokens encrypted."""
    return [
        Entry(
            run.run_id,
            run.source,
            vault.encrypt(Secret(run.read_token)) if run.read_token else None,
            run.labels,
        )
        for run in merge_runs(runs)
    ]


def _check_readable(name: str) -> None:
    """Raise UsageError for a list that cannot be opened, without opening it."""
    if name == "-":
        return
    try:
        if stat.S_ISDIR(Path(name).stat().st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(name, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unreadable(name, error) from None


def _read_content(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: OSError) -> UsageError:
    return UsageError(f"{name}: cannot be read: {error.strerror}")
