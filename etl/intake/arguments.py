"""Read the runs that a command names: as arguments and in lists."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from etl import display
from etl.config.settings import Config
from etl.errors import UsageError
from etl.intake import lists
from etl.intake.entries import ListedRun, check_label, check_run_id, remove_invisible
from etl.intake.lists import Given


class Wanted(NamedTuple):
    """The command line's run IDs, list files (- is stdin), source and NAME=VALUE labels.

    `refresh` fetches these runs even if they are final, and all runs where none is given.
    """

    run_ids: Sequence[str]
    lists: Sequence[str]
    source: str | None
    labels: Sequence[str]
    refresh: bool = False


def read(wanted: Wanted, config: Config) -> Given:
    """Return the runs of the arguments and lists; report each bad line on stderr.

    Raises:
        UsageError: an argument is wrong, or a list cannot be read.
    """
    labels = read_labels(wanted.labels)
    if wanted.source is not None and wanted.source not in config.sources:
        raise UsageError(f"--source: {lists.describe_unknown_source(wanted.source, config)}")
    arguments = [_argument(run_id) for run_id in wanted.run_ids]
    listed = lists.read(wanted.lists, config)
    return Given(
        entry and _completed(entry, wanted.source, labels)
        for entry in chain(arguments, listed.entries)
    )


def _argument(run_id: str) -> ListedRun:
    cleaned = remove_invisible(run_id)
    if cleaned != run_id:
        display.note(f"run ID {run_id}: invisible characters removed")
    try:
        return ListedRun(run_id=check_run_id(cleaned), place="argument")
    except ValueError as error:
        raise UsageError(f"run ID {run_id!r}: {error}") from None


def read_labels(given: Sequence[str]) -> dict[str, str]:
    """Return labels given as NAME=VALUE. Raises UsageError for any other."""
    labels: dict[str, str] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name.strip():
            raise UsageError(f"--label {text!r}: give NAME=VALUE, such as branch=main")
        try:
            labels.update([check_label(name, value)])
        except ValueError as error:
            raise UsageError(f"--label: {error}") from None
    return labels


def _completed(run: ListedRun, source: str | None, labels: Mapping[str, str]) -> ListedRun:
    if source is None and not labels:
        return run
    return replace(run, source=run.source or source, labels={**labels, **run.labels})
