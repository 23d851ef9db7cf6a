"""A run as a list describes it, and the rules for its ID, labels and secrets.

An error's text quotes nothing of the list: a read token or an API key may stand anywhere in it.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

FIELDS = frozenset({"run_id", "read_token", "source"})

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # Unicode category Cc, surrogates
_MAX_LABEL_NAME_BYTES = 500  # the name is part of a key, whose length databases limit
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")  # no database stores these in a text
_KEY_IN_URL = re.compile(r"[?&](?:apikey|read_token)=", re.IGNORECASE)
_SECRET_NAME = re.compile(
    r"(?:(?:read|access|auth)?[ _-]?token|api[ _-]?key|secret|password)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run as a list describes it. `source` names an account; None is the default one.

    `place` says where the list names it, as file:line. `is_cleaned` says that its ID, token or
    source had invisible characters.
    """

    run_id: str
    source: str | None = None
    read_token: str | None = field(default=None, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    place: str = field(default="", compare=False)
    is_cleaned: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line (counted from 1) that was left out. `reason` quotes nothing of it."""

    line: int
    reason: str


def merge_runs(runs: Iterable[ListedRun]) -> list[ListedRun]:
    """Make one of the entries for the same run, in the order in which runs are first named.

    A value that a later entry gives replaces the earlier one; values that it leaves out are kept.
    """
    merged: dict[str, ListedRun] = {}
    for run in runs:
        before = merged.setdefault(run.run_id, run)
        if before is not run:
            merged[run.run_id] = replace(
                run,
                source=run.source or before.source,
                read_token=run.read_token or before.read_token,
                labels={**before.labels, **run.labels},
            )
    return list(merged.values())


def check_run_id(text: str) -> str:
    """Return `text` if it can be a run ID, else raise a ValueError whose text is one line.

    A run ID has 1 to 512 characters, none of them a control character, an invisible one or a
    lone surrogate, no blanks at its ends, and is not `.` or `..`, which would change the path of
    the API call. A text with a key in it, as the URL of an API call, is refused as well: it would
    be stored.
    """
    if not text:
        raise ValueError("the run ID is empty")
    if _KEY_IN_URL.search(text):
        raise ValueError("this is a URL with a key in it; give the run ID alone")
    if len(text) > 512:
        raise ValueError("the run ID is longer than 512 characters")
    if _CONTROL.search(text):
        raise ValueError("the run ID has a control character or half a character in it")
    if text != text.strip():
        raise ValueError("the run ID has blanks at its ends")
    if not text.isascii() and text != remove_invisible(text):
        raise ValueError("the run ID has an invisible character in it")
    if text in {".", ".."}:
        raise ValueError("a run ID cannot be . or ..")
    return text


def is_invisible(character: str) -> bool:
    """Tell a format character, such as a zero-width space or a direction mark (category Cf)."""
    return unicodedata.category(character) == "Cf"


def remove_invisible(text: str) -> str:
    """Return `text` without its format characters, which come along when a chat is copied."""
    if text.isascii():
        return text
    return "".join(character for character in text if not is_invisible(character))


def clean_text(text: str) -> str:
    """Return `text` without invisible characters, and without blanks at its ends."""
    return text.strip() if text.isascii() else remove_invisible(text).strip()


def build_run(members: Mapping[str, object], place: str) -> ListedRun:
    """Build a run from the cells or members that describe it. Raises ValueError, in one line."""
    given = f"{members.get('run_id')}{members.get('source')}{members.get('read_token')}"
    return ListedRun(
        run_id=_run_id(members),
        source=_text(members, "source"),
        read_token=_text(members, "read_token"),
        labels=_labels(members),
        place=place,
        is_cleaned=not given.isascii() and given != remove_invisible(given),
    )


def _run_id(members: Mapping[str, object]) -> str:
    if "run_id" not in members:
        raise ValueError("no run_id")
    run_id = members["run_id"]
    if type(run_id) is not str:
        raise ValueError("the run ID is not a string; put it in quotes")
    return check_run_id(clean_text(run_id))


def _text(members: Mapping[str, object], name: str) -> str | None:
    value = members.get(name)
    if value is None:
        return None
    if type(value) is not str:
        raise ValueError(f"{name} is not a string; put it in quotes")
    text = clean_text(value)
    if _CONTROL.search(text) or _KEY_IN_URL.search(text):
        raise ValueError(f"{name} has a control character or a URL with a key in it")
    return text or None


def _labels(members: Mapping[str, object]) -> dict[str, str]:
    """Collect the labels: members that are no field of ours, and those of `labels`.

    Members that are nested deeper, null, or nameless are left out. A label is stored as it is,
    so one that is named like a secret or has a key in it is a ValueError.
    """
    named = {name: value for name, value in members.items() if name not in FIELDS}
    nested = named.get("labels")
    if isinstance(nested, dict):
        named |= nested
    return {
        label: _label_value(value)
        for name, value in named.items()
        if isinstance(value, str | bool) and (label := _label_name(name))
    }


def check_label(name: str, value: str) -> tuple[str, str]:
    """Return a label as it can be stored, else raise a ValueError whose text is one line."""
    return _label_name(name), _label_value(value.strip())


@lru_cache(maxsize=1024)  # a list has few names, each on every line
def _label_name(name: str) -> str:
    if _SECRET_NAME.fullmatch(clean_text(name)):
        raise ValueError("a label is named like a secret; a read token belongs in read_token")
    if len(name.encode(errors="replace")) > _MAX_LABEL_NAME_BYTES:
        raise ValueError(f"a label's name is longer than {_MAX_LABEL_NAME_BYTES} bytes")
    return _UNSTORABLE.sub("\ufffd", name.strip())


def _label_value(value: object) -> str:
    text = str(value) if isinstance(value, str) else json.dumps(value)
    if _KEY_IN_URL.search(text):
        raise ValueError("a label has a URL with a key in it, and would store the key")
    return _UNSTORABLE.sub("\ufffd", text)
