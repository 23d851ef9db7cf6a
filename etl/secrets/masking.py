"""Masking: every text that leaves the program is searched for our secrets.

A secret is known from the moment it is read. `mask` replaces it wherever it stands, in each way
that a program may escape it; a URL parameter or a URL password is replaced even if unknown.
"""

import os
import re
from collections.abc import Iterable
from functools import lru_cache

API_KEY_ENV = "APPLITOOLS_API_KEY"
MASK = "***"

_PARAMETER = re.compile(r"(?i)\b(apikey|read_token|(?:ssl)?password)=[^&\s'\"\\]+")
_URL_PASSWORD = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s:/@'\"<>]*):[^\s'\"<>]*@")
_MIN_PASSWORD = 8
_MIN_WORD = 16
"""From this length on, even a password of letters alone is taken for a random one."""

_hidden: set[str] = set()


class Secret:
    """A text that only `reveal` shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text: for the request alone."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret({MASK})"


def hide(secret: str) -> None:
    """Make `mask` replace `secret`, as it is or escaped, from now on."""
    _hidden.add(secret)


def hide_password(password: str, names: Iterable[str]) -> None:
    """Hide a database password, unless masking it would blot out ordinary words.

    A password is left to the places where one can stand (a URL, `password=`) if it is shorter
    than 8 characters, or a word or number of fewer than 16, or part of one of `names` (the URL's
    user, host and database), or has fewer than five different characters.
    """
    plain = re.sub("[-_. ]", "", password)
    is_word = (plain.isalpha() or plain.isdigit()) and len(password) < _MIN_WORD
    is_name = any(password.casefold() in name.casefold() for name in names)
    if len(password) >= _MIN_PASSWORD and len(set(password)) >= 5 and not is_word and not is_name:
        hide(password)


def forget_secrets() -> None:
    """Forget every secret that `hide` was given. For tests that begin as a new process does."""
    _hidden.clear()


def mask(text: str) -> str:
    """Return `text` without the hidden secrets, URL passwords and secret URL parameters.

    The API key in the environment is always hidden: an error in the settings is printed before
    anything reads the key.
    """
    for secret in _longest_first({*_hidden, os.environ.get(API_KEY_ENV, "").strip()}):
        if _core(secret) in text:
            text = re.sub(_pattern(secret), MASK, text)
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1:{MASK}@", text)
    return _PARAMETER.sub(rf"\1={MASK}", text)


def mask_body(body: bytes, secrets: list[Secret]) -> bytes:
    """Return `body` with every echo of `secrets` replaced."""
    for secret in _longest_first({secret.reveal() for secret in secrets}):
        if _core(secret).encode() in body:
            body = re.sub(_pattern(secret).encode(), MASK.encode(), body)
    return body


def mask_url_password(url: str) -> str:
    """Mask the password of a URL, up to its last `@`, and each parameter that works as one.

    A password may contain an `@` that nobody escaped.
    """
    start = url.find("://") + 3 if "://" in url else 0
    rest = re.sub(r"[:@].*@", f":{MASK}@", url[start:], flags=re.DOTALL)
    return url[:start] + re.sub(r"(?i)(password|api_?key|token|key)=[^&]+", rf"\1={MASK}", rest)


def _longest_first(secrets: Iterable[str]) -> list[str]:
    """Sort the longest secret first, because one can begin with another. Leave out empty ones."""
    return sorted(filter(None, secrets), key=len, reverse=True)


@lru_cache
def _core(secret: str) -> str:
    """Return the longest part of `secret` that no encoding changes; a quick search looks for it."""
    parts: list[str] = re.findall("[A-Za-z0-9]*", secret)
    return max(parts, key=len)


@lru_cache
def _pattern(secret: str) -> str:
    """Return a regular expression for `secret` with each character as it is or escaped."""
    return "".join(
        character if re.fullmatch("[A-Za-z0-9]", character) else f"(?:{_forms(character)})"
        for character in secret
    )


def _forms(character: str) -> str:
    """Return a regular expression for `character` as it is, or escaped for a URL, HTML or JSON.

    A text that is escaped twice has "%25" for "%", and more backslashes.
    """
    # Loaded here: few secrets have such a character.
    from html.entities import codepoint2name  # noqa: PLC0415

    code = ord(character)
    utf16 = character.encode("utf-16-be", "surrogatepass")
    units = [utf16[start : start + 2].hex() for start in range(0, len(utf16), 2)]
    in_url = "".join(f"%(?:25)*{byte:02x}" for byte in character.encode(errors="replace"))
    in_json = "".join(rf"\\+u{unit}" for unit in units)
    in_html = f"&(?:{codepoint2name.get(code, 'x')}|#0*{code}|#x0*{code:x});"
    backslashes = {"\\": r"\\*", '"': r"\\*", "'": r"\\*", "/": r"\\*"}.get(character, "")
    blank = r"\+|" if character == " " else ""
    return f"(?i:{in_url}|{in_json}|{in_html})|{blank}{backslashes}{re.escape(character)}"
