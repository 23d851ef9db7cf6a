"""Read run lists from files, standard input and watched folders; `intake` understands them.

Bad lines are told on stderr as file:line, and the rest goes on.
"""

import glob
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from etl import display
from etl.config.settings import Config
from etl.errors import UsageError
from etl.intake.entries import BadLine, ListedRun
from etl.intake.formats import read_entries
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


def read(names: Sequence[str], config: Config) -> Given:
    """Return the runs of the lists called `names` (- is standard input).

    Raises:
        UsageError: a list cannot be read; none was begun with.
    """
    for name in names:
        _check_readable(name)
    return Given(entry for name in names for entry in _read_one(name, config))


def read_watched(config: Config) -> Given:
    """Return the runs of the files that `runs.sources` names now, each read once.

    A file that cannot be read, or is gone again, counts as a bad line: the others go on.
    """
    found = {name for pattern in config.runs.sources for name in glob.glob(pattern)}  # noqa: PTH207  absolute patterns
    return Given(entry for name in sorted(found) for entry in _read_watched_one(name, config))


def _read_watched_one(name: str, config: Config) -> Iterator[ListedRun | None]:
    try:
        yield from _read_one(name, config)
    except UsageError as error:
        display.note(str(error))
        yield None


def _read_one(name: str, config: Config) -> Iterator[ListedRun | None]:
    """Yield the runs of a list, and None for each bad line, once it was told of."""
    shown = "stdin" if name == "-" else name
    content = _content(name)
    if name == "-" and not content.strip():
        display.note("stdin: there is nothing in it; did the command before the pipe fail?")
        yield None
    listed = read_entries(content)
    del content  # long lists are not to be in memory twice
    for entry in listed:
        if isinstance(entry, BadLine):
            display.note(f"{shown}:{entry.line}: {entry.reason}")
            yield None
        elif entry.source is not None and entry.source not in config.sources:
            unknown = stranger(entry.source, config)
            display.note(f"{shown}: run {display.safe(entry.run_id)}: {unknown}")
            yield None
        else:
            yield entry


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


def _check_readable(name: str) -> None:
    if name != "-":
        with _opened(name):
            pass


def _content(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    with _opened(name) as file:
        return file.read()


def _opened(name: str) -> BinaryIO:
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from None
