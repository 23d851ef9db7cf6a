"""What a run list can say of a run, and the rules that it is held to.

A reason quotes nothing of the list: a read token or an API key may stand anywhere in it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

FIELDS = frozenset({"run_id", "read_token", "source"})

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # Unicode category Cc, surrogates
_MAX_LABEL_NAME_BYTES = 500  # the name is part of a key, which databases limit
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")  # no database takes these in a text
_KEY_IN_URL = re.compile(r"[?&](?:apikey|read_token)=", re.IGNORECASE)
_SECRET_NAME = re.compile(
    r"(?:(?:read|access|auth)?[ _-]?token|api[ _-]?key|secret|password)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class ListedRun:
    """What a list says of one run. `source` names an account; None is the default one."""

    run_id: str
    source: str | None = None
    read_token: str | None = field(default=None, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line (counted from 1) that was left out. `reason` quotes nothing of it."""

    line: int
    reason: str


def check_run_id(text: str) -> str:
    """Return `text` if it can be a run ID, else raise a ValueError whose text is one line.

    A run ID has 1 to 512 characters, none of them a control character or a lone surrogate, no
    blanks at its ends, and is not `.` or `..`, which would change the path of the API call. What
    carries a key, as the URL of an API call does, is refused as well: it would be stored.
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
    if text in {".", ".."}:
        raise ValueError("a run ID cannot be . or ..")
    return text


def build_run(members: Mapping[str, object]) -> ListedRun:
    """Build a run from the cells or members that describe it. Raises ValueError, in one line."""
    return ListedRun(
        run_id=_run_id(members),
        source=_text(members, "source"),
        read_token=_text(members, "read_token"),
        labels=_labels(members),
    )


def _run_id(members: Mapping[str, object]) -> str:
    if "run_id" not in members:
        raise ValueError("no run_id")
    run_id = members["run_id"]
    if type(run_id) is not str:
        raise ValueError("the run ID is not a string; put it in quotes")
    return check_run_id(run_id.strip())


def _text(members: Mapping[str, object], name: str) -> str | None:
    value = members.get(name)
    if value is None:
        return None
    if type(value) is not str:
        raise ValueError(f"{name} is not a string; put it in quotes")
    text = value.strip()
    if _CONTROL.search(text) or _KEY_IN_URL.search(text):
        raise ValueError(f"{name} has a control character or a URL with a key in it")
    return text or None


def _labels(members: Mapping[str, object]) -> dict[str, str]:
    """Collect the labels: members that are no field of ours, and those of `labels`.

    What is nested deeper, null, or has no name is no label. A label is stored as it is, so one
    that is named like a secret or has a key in it is a ValueError.
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
    if _SECRET_NAME.fullmatch(name.strip()):
        raise ValueError("a label is named like a secret; a read token belongs in read_token")
    if len(name.encode(errors="replace")) > _MAX_LABEL_NAME_BYTES:
        raise ValueError(f"a label's name is longer than {_MAX_LABEL_NAME_BYTES} bytes")
    return _UNSTORABLE.sub("\ufffd", name.strip())


def _label_value(value: object) -> str:
    text = str(value) if isinstance(value, str) else json.dumps(value)
    if _KEY_IN_URL.search(text):
        raise ValueError("a label has a URL with a key in it, and would store the key")
    return _UNSTORABLE.sub("\ufffd", text)
