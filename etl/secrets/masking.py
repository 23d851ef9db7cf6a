"""Masking: no secret of ours is shown, however it is escaped."""

import os
import re
from collections.abc import Iterable
from functools import lru_cache
from html.entities import codepoint2name

API_KEY_ENV = "APPLITOOLS_API_KEY"
MASK = "***"

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


def mask_url_password(text: str) -> str:
    """Hide the password of a URL, and anything else in it that works as one."""
    start = text.find("://") + 3 if "://" in text else 0
    rest = re.sub(r":.*@", ":***@", text[start:], flags=re.DOTALL)
    return text[:start] + re.sub(r"(?i)(password|api_?key|token|key)=[^&]+", r"\1=***", rest)
