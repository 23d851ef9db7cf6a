"""API keys: where they come from."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from etl.errors import ConfigError
from etl.secrets.masking import API_KEY_ENV, Secret, hide

DEFAULT_SOURCE = "default"


class KeyPlace(Protocol):
    """The settings of a source that say where its API key is kept."""

    @property
    def key_env(self) -> str | None:
        """The environment variable that has the key."""

    @property
    def key_file(self) -> str | None:
        """The file that has the key."""


def api_key(name: str, source: KeyPlace) -> Secret:
    """Return the key of the source called `name`.

    Raises:
        ConfigError: the key is missing, or its file cannot be read.
    """
    key = os.environ.get(source.key_env or "", "").strip()
    if not key and source.key_file:
        key = _read_key(name, Path(source.key_file))
    if not key:
        raise ConfigError(_no_key(name, source))
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"the API key of source {name} has characters that no key has; check it")
    hide(key)
    return Secret(key)


def require_keys(sources: Mapping[str, KeyPlace], names: set[str]) -> None:
    """Raise ConfigError where the key of one of the sources `names` is missing.

    With one account only, its missing key is a mistake even while nothing is due.
    """
    known = sources.keys()
    for name in sorted((names & known) or (known if len(known) == 1 else set())):
        api_key(name, sources[name])


def _no_key(name: str, source: KeyPlace) -> str:
    if name == DEFAULT_SOURCE and not source.key_file:
        return f"no API key: set {API_KEY_ENV}, or api.key_file in config.toml"
    where = f"write it into {source.key_file}" if source.key_file else f"set {source.key_env}"
    return f"no API key for source {name}: {where}"


def _read_key(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        # If the file does not exist, the setting may be the key itself, put in the wrong place.
        is_there = isinstance(error, PermissionError | IsADirectoryError)
        shown = path if is_there else f"the file it names in {path.parent}"
        raise ConfigError(
            f"key_file of source {name}: {shown} cannot be read: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"key_file of source {name}: {path} is not a text file") from None
