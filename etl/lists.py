"""Read run lists from files, standard input and watched folders; `intake` understands them.

Bad lines are told on stderr as file:line, and the rest goes on.
"""

import glob
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from etl import display
from etl.config import Config
from etl.errors import UsageError
from etl.intake import ListedRun, read_list
from etl.ledger import Entry
from etl.secrets import Secret, TokenVault


class Given(NamedTuple):
    """The runs that were given, and how many lines of their lists were bad (and told of)."""

    runs: list[ListedRun]
    bad_lines: int


def read(names: Iterable[str], config: Config) -> Given:
    """Return the runs of the lists called `names` (- is standard input).

    Raises:
        UsageError: a list cannot be read.
    """
    return _together(_read_one(name, config) for name in names)


def read_watched(config: Config) -> Given:
    """Return the runs of the files that `runs.sources` names now, each read once.

    A file that cannot be read, or is gone again, counts as a bad line: the others go on.
    """
    found = {name for pattern in config.runs.sources for name in glob.glob(pattern)}  # noqa: PTH207  absolute patterns
    return _together(_read_watched_one(name, config) for name in sorted(found))


def _together(lists: Iterable[Given]) -> Given:
    runs: list[ListedRun] = []
    bad_lines = 0
    for given in lists:
        runs += given.runs
        bad_lines += given.bad_lines
    return Given(runs, bad_lines)


def _read_watched_one(name: str, config: Config) -> Given:
    try:
        return _read_one(name, config)
    except UsageError as error:
        display.note(str(error))
        return Given([], 1)


def _read_one(name: str, config: Config) -> Given:
    listed = read_list(_content(name))
    shown = "stdin" if name == "-" else name
    for bad in listed.bad_lines:
        display.note(f"{shown}:{bad.line}: {bad.reason}")
    runs = []
    for run in listed.runs:
        if run.source is None or run.source in config.sources:
            runs.append(run)
        else:
            unknown = stranger(run.source, config)
            display.note(f"{shown}: run {display.safe(run.run_id)}: {unknown}")
    return Given(runs, len(listed.bad_lines) + len(listed.runs) - len(runs))


def stranger(source: str, config: Config) -> str:
    """Say that a source is not configured, and which ones are."""
    return f"source {display.safe(source)} is not configured; there are {', '.join(config.sources)}"


def entries(runs: Sequence[ListedRun], vault: TokenVault) -> list[Entry]:
    """Return `runs` as the ledger takes them: tokens encrypted, a run that comes twice merged."""
    by_id: dict[str, Entry] = {}
    for run in runs:
        before = by_id.get(run.run_id, Entry(run.run_id, None, None, {}))
        token = vault.encrypt(Secret(run.read_token)) if run.read_token else before.read_token
        labels = {**before.labels, **run.labels}
        by_id[run.run_id] = Entry(run.run_id, run.source or before.source, token, labels)
    return list(by_id.values())


def _content(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from None
