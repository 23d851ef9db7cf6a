"""The token vault: read tokens are encrypted at rest."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from etl.errors import ConfigError
from etl.files import create_once
from etl.secrets.masking import Secret

if TYPE_CHECKING:  # it adds a tenth to a process's memory, and most processes have no tokens
    from cryptography.fernet import MultiFernet


class TokenVault:
    """Encrypts read tokens for the ledger, and decrypts them for the request.

    The key file has a Fernet key a line: the first encrypts, all decrypt. The first token that
    has to be stored creates the file, readable by its owner alone. Until a token is there, the
    file is not looked for: a user without a home folder can work without tokens.
    """

    def __init__(self, key_file: str) -> None:
        self._key_file = key_file
        self._fernet: MultiFernet | None = None

    def encrypt(self, token: Secret) -> str:
        """Return `token` as a text that is safe to store. Raises ConfigError as `decrypt` does."""
        if self._fernet is None:
            _ensure_key_file(self._path)
        return self._opened().encrypt(token.reveal().encode()).decode()

    def decrypt(self, stored: str) -> Secret:
        """Return the token that `encrypt` was given.

        Raises:
            ConfigError: the key file is missing, or has another key.
        """
        from cryptography.fernet import InvalidToken  # noqa: PLC0415

        try:
            return Secret(self._opened().decrypt(stored.encode()).decode())
        except InvalidToken:
            raise ConfigError(
                f"its read token cannot be decrypted: {self._key_file} has another key than the"
                " one it was tracked with",
                "bring that key back, or track the run again",
            ) from None

    def fingerprints(self) -> list[str]:
        """Return a text that identifies each key of the file; [] if there is no file.

        Raises ConfigError if others can read the file, or we cannot.
        """
        if not self.has_key_file():
            return []
        return [hashlib.sha256(key.encode()).hexdigest()[:16] for key in _read_keys(self._path)]

    def has_key_file(self) -> bool:
        """Tell whether the key file exists. Raises ConfigError where its home folder does not."""
        return self._path.exists()

    def _opened(self) -> "MultiFernet":
        if self._fernet is None:
            self._fernet = _load_keys(self._path)
        return self._fernet

    @property
    def _path(self) -> Path:
        try:
            return Path(self._key_file).expanduser()
        except RuntimeError:
            raise ConfigError(
                f"security.token_key_file: {self._key_file} is in a home folder, and this user has"
                " none",
                "set HOME, or give another path",
            ) from None


def _ensure_key_file(path: Path) -> None:
    """Write a new key in one step: two processes never see half a file, or two keys."""
    from cryptography.fernet import Fernet  # noqa: PLC0415

    try:
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Another process may be first: its key is used.
        create_once(path, Fernet.generate_key() + b"\n")
    except OSError as error:
        raise ConfigError(
            f"security.token_key_file: {path} cannot be written: {error.strerror}"
        ) from None


def _read_keys(path: Path) -> list[str]:
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(
                f"security.token_key_file: {path} can be read by others", f"run `chmod 600 {path}`"
            )
        return path.read_text().split()
    except OSError as error:
        raise ConfigError(
            f"security.token_key_file: {path} cannot be read: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise _no_valid_key(path) from None


def _load_keys(path: Path) -> "MultiFernet":
    from cryptography.fernet import Fernet, MultiFernet  # noqa: PLC0415

    try:
        return MultiFernet([Fernet(key) for key in _read_keys(path)])
    except ValueError:
        raise _no_valid_key(path) from None


def _no_valid_key(path: Path) -> ConfigError:
    problem = f"security.token_key_file: {path} has no valid key"
    return ConfigError(problem, "bring the right file back")
