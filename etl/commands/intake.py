"""Read the runs that a command was given: as arguments and as lists."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from etl import display
from etl.config import Config
from etl.errors import UsageError
from etl.intake import ListedRun, check_run_id, read_list
from etl.ledger import Entry
from etl.secrets import Secret, TokenVault


class Wanted(NamedTuple):
    """What the command line says: run IDs, list files (- is stdin), a source, NAME=VALUE labels."""

    run_ids: Sequence[str]
    lists: Sequence[str]
    source: str | None
    labels: Sequence[str]


class Given(NamedTuple):
    """The runs that were given, and how many lines of their lists were bad (and told of)."""

    runs: list[ListedRun]
    bad_lines: int


def read(wanted: Wanted, config: Config) -> Given:
    """Return the runs of the arguments and lists; report each bad line on stderr.

    Raises:
        UsageError: an argument is wrong, or a list cannot be read.
    """
    labels = _labels(wanted.labels)
    if wanted.source is not None and wanted.source not in config.sources:
        raise UsageError(f"--source {wanted.source}: {_known_sources(config)}")
    runs = [_argument(run_id) for run_id in wanted.run_ids]
    bad_lines = 0
    for name in wanted.lists:
        listed = read_list(_content(name))
        shown = "stdin" if name == "-" else name
        for bad in listed.bad_lines:
            display.note(f"{shown}:{bad.line}: {bad.reason}")
        strangers = [run for run in listed.runs if run.source not in {None, *config.sources}]
        for run in strangers:
            display.note(
                f"{shown}: run {run.run_id}: source {run.source}: {_known_sources(config)}"
            )
        runs += [run for run in listed.runs if run not in strangers]
        bad_lines += len(listed.bad_lines) + len(strangers)
    return Given([_completed(run, wanted.source, labels) for run in runs], bad_lines)


def entries(runs: Sequence[ListedRun], vault: TokenVault) -> list[Entry]:
    """Return `runs` as the ledger takes them, their tokens encrypted; the last of equals counts."""
    by_id: dict[str, Entry] = {}
    for run in runs:
        token = vault.encrypt(Secret(run.read_token)) if run.read_token else None
        by_id[run.run_id] = Entry(run.run_id, run.source, token, run.labels)
    return list(by_id.values())


def _argument(run_id: str) -> ListedRun:
    try:
        return ListedRun(run_id=check_run_id(run_id))
    except ValueError as error:
        raise UsageError(f"run ID {run_id!r}: {error}") from None


def _content(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from None


def _labels(given: Sequence[str]) -> dict[str, str]:
    labels = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name.strip():
            raise UsageError(f"--label {text!r}: give NAME=VALUE, such as branch=main")
        labels[name.strip()] = value.strip()
    return labels


def _completed(run: ListedRun, source: str | None, labels: Mapping[str, str]) -> ListedRun:
    return ListedRun(
        run_id=run.run_id,
        source=run.source or source,
        read_token=run.read_token,
        labels={**labels, **run.labels},
    )


def _known_sources(config: Config) -> str:
    return f"is not configured; there are {', '.join(config.sources)}"
