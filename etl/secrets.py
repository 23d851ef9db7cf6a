"""API keys and read tokens: where they come from, how they rest, and how they stay unseen."""

import os
import re
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from html.entities import codepoint2name
from pathlib import Path
from typing import TYPE_CHECKING

from etl.config.settings import API_KEY_ENV, DEFAULT_SOURCE, Config, Source
from etl.errors import ConfigError

MASK = "***"

if TYPE_CHECKING:  # a tenth of what a process takes without it, and most have no tokens
    from cryptography.fernet import MultiFernet

_known: set[str] = set()


class Secret:
    """A text that shows itself only when it is asked to."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text. For the request, and for nothing else."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret({MASK})"


def hide(secret: str) -> None:
    """Have `mask` replace `secret`, as it is or escaped in any way, from now on."""
    _known.add(secret)


def mask(text: str) -> str:
    """Return `text` without the hidden secrets and without any value of a secret URL parameter.

    The key in the environment is hidden unasked: what is wrong with the settings is told before
    anybody has read it.
    """
    for secret in _longest_first({*_known, os.environ.get(API_KEY_ENV, "").strip()}):
        if _core(secret) in text:
            text = re.sub(_pattern(secret), MASK, text)
    return re.sub(r"(?i)\b(apikey|read_token|password)=[^&\s'\"\\]+", rf"\1={MASK}", text)


def mask_body(body: bytes, secrets: list[Secret]) -> bytes:
    """Return `body` with every echo of `secrets` replaced."""
    for secret in _longest_first({secret.reveal() for secret in secrets}):
        if _core(secret).encode() in body:
            body = re.sub(_pattern(secret).encode(), MASK.encode(), body)
    return body


def _longest_first(secrets: Iterable[str]) -> list[str]:
    """A secret can begin with another one: the longer one has to go first. Empty ones are none."""
    return sorted(filter(None, secrets), key=len, reverse=True)


@lru_cache
def _core(secret: str) -> str:
    """Return the longest part of `secret` that no encoding changes: where it is not, nothing is."""
    parts: list[str] = re.findall("[A-Za-z0-9]*", secret)
    return max(parts, key=len)


@lru_cache
def _pattern(secret: str) -> str:
    """Return the regular expression for all forms in which `secret` can be met.

    Whoever echoes it may escape each character in another way, or not at all.
    """
    return "".join(
        character if re.fullmatch("[A-Za-z0-9]", character) else f"(?:{_forms(character)})"
        for character in secret
    )


def _forms(character: str) -> str:
    """Return the regular expression for `character` escaped for a URL, HTML or JSON, or as it is.

    What is escaped twice has "%25" for "%", and more backslashes.
    """
    code = ord(character)
    utf16 = character.encode("utf-16-be", "surrogatepass")
    units = [utf16[start : start + 2].hex() for start in range(0, len(utf16), 2)]
    in_url = "".join(f"%(?:25)*{byte:02x}" for byte in character.encode(errors="replace"))
    in_json = "".join(rf"\\+u{unit}" for unit in units)
    in_html = f"&(?:{codepoint2name.get(code, 'x')}|#0*{code}|#x0*{code:x});"
    backslashes = {"\\": r"\\*", '"': r"\\*", "'": r"\\*", "/": r"\\*"}.get(character, "")
    blank = r"\+|" if character == " " else ""
    return f"(?i:{in_url}|{in_json}|{in_html})|{blank}{backslashes}{re.escape(character)}"


def api_key(name: str, source: Source) -> Secret:
    """Return the key of the source called `name`.

    Raises:
        ConfigError: there is none, or its file cannot be read.
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


def require_keys(config: Config, names: set[str]) -> None:
    """Raise ConfigError where the key of one of the sources `names` is missing.

    With one account only, its missing key is a mistake even while nothing is due.
    """
    known = config.sources.keys()
    for name in sorted((names & known) or (known if len(known) == 1 else set())):
        api_key(name, config.sources[name])


def _no_key(name: str, source: Source) -> str:
    if name == DEFAULT_SOURCE and not source.key_file:
        return f"no API key: set {API_KEY_ENV}, or api.key_file in config.toml"
    where = f"write it into {source.key_file}" if source.key_file else f"set {source.key_env}"
    return f"no API key for source {name}: {where}"


def _read_key(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        # Where there is no such file, its name may be the key itself, put in the wrong place.
        is_there = isinstance(error, PermissionError | IsADirectoryError)
        shown = path if is_there else f"what it names in {path.parent}"
        raise ConfigError(
            f"key_file of source {name}: {shown} cannot be read: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"key_file of source {name}: {path} is no text file") from None


class TokenVault:
    """Encrypts read tokens for the ledger, and decrypts them for the request.

    The key file has a Fernet key a line: the first encrypts, all decrypt. It is made, readable
    by its owner alone, when the first token has to be kept.
    """

    def __init__(self, key_file: Path) -> None:
        self._key_file = key_file
        self._fernet: MultiFernet | None = None

    def encrypt(self, token: Secret) -> str:
        """Return `token` as a text that is safe to keep."""
        if self._fernet is None:
            _ensure_key_file(self._key_file)
        return self._opened().encrypt(token.reveal().encode()).decode()

    def decrypt(self, kept: str) -> Secret:
        """Return the token that `encrypt` was given.

        Raises:
            ConfigError: the key file is missing, or has another key.
        """
        from cryptography.fernet import InvalidToken  # noqa: PLC0415

        try:
            return Secret(self._opened().decrypt(kept.encode()).decode())
        except InvalidToken:
            raise ConfigError(
                f"its read token cannot be decrypted: {self._key_file} has another key than the"
                " one it was tracked with",
                "bring that key back, or track the run again",
            ) from None

    def _opened(self) -> "MultiFernet":
        if self._fernet is None:
            self._fernet = _load_keys(self._key_file)
        return self._fernet


def open_vault(config: Config) -> TokenVault:
    """Return the vault of the configured key file; nothing is read or made yet."""
    key_file = config.security.token_key_file
    try:
        return TokenVault(Path(key_file).expanduser())
    except RuntimeError:
        raise ConfigError(
            f"security.token_key_file: {key_file} is in a home folder, and this user has none",
            "set HOME, or give another path",
        ) from None


def _ensure_key_file(path: Path) -> None:
    """Write a new key whole and at once: two processes never see half a file, or two keys."""
    from cryptography.fernet import Fernet  # noqa: PLC0415

    try:
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent) as file:  # readable by its owner alone
            file.write(Fernet.generate_key() + b"\n")
            file.flush()
            os.fsync(file.fileno())  # tokens encrypted with a key that is lost are lost
            with suppress(FileExistsError):  # another process was first: its key is the one
                os.link(file.name, path)
    except OSError as error:
        raise ConfigError(
            f"security.token_key_file: {path} cannot be written: {error.strerror}"
        ) from None


def _load_keys(path: Path) -> "MultiFernet":
    from cryptography.fernet import Fernet, MultiFernet  # noqa: PLC0415

    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(
                f"security.token_key_file: {path} can be read by others", f"run `chmod 600 {path}`"
            )
        return MultiFernet([Fernet(line) for line in path.read_text().split()])
    except OSError as error:
        raise ConfigError(
            f"security.token_key_file: {path} cannot be read: {error.strerror}"
        ) from None
    except ValueError:
        raise ConfigError(
            f"security.token_key_file: {path} has no valid key", "bring the right file back"
        ) from None
