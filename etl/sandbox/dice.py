"""Reproducible random values: one key gives one value in every process and on every machine.

`random` promises that for few of its methods, and `hash()` for none. A key is the path to the
thing decided ("flaky", plan id, test, run), so no value depends on earlier calls.
"""

import uuid
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")

Part = str | int


def between(low: int, high: int, *key: Part) -> int:
    """Return a whole number from `low` to `high`, both included."""
    return low + int(chance(*key) * (high - low + 1))


def chance(*key: Part) -> float:
    """Return a number from 0 (included) to 1 (excluded)."""
    # 53 bits, so that the quotient is exact and can never be rounded up to 1.
    return (int.from_bytes(_digest(8, key)) >> 11) / 2**53


def pick(options: Sequence[T], *key: Part) -> T:
    """Return one of `options`, each as likely as the others."""
    return options[between(0, len(options) - 1, *key)]


def token(digits: int, *key: Part) -> str:
    """Return an even number of hexadecimal digits, at most 128."""
    return _digest(digits // 2, key).hex()


def uuid4(*key: Part) -> str:
    """Return an id that looks like a random UUID."""
    return str(uuid.UUID(bytes=_digest(16, key), version=4))


def _digest(size: int, key: tuple[Part, ...]) -> bytes:
    # The separator keeps ("a", "bc") and ("ab", "c") apart.
    return blake2b("\x1f".join(map(str, key)).encode(), digest_size=size).digest()
