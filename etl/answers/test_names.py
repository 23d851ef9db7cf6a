"""The tests of an answer by name and type, which identify a test from run to run as a rule.

Computed where the answer is read, beside the process that stores it.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from etl.answers.rows import TestRow

KEY_BYTES = 8
_encode = msgspec.json.Encoder().encode


class NamedTests(NamedTuple):
    """The tests as JSON, [[name, type], ...], a hash of that, and the keys of all tests."""

    roster_id: str
    tests: str
    keys: bytes

    @property
    def are_distinct(self) -> bool:
        """Whether no test stands there twice."""
        keys = range(0, len(self.keys), KEY_BYTES)
        return len({self.keys[start : start + KEY_BYTES] for start in keys}) == len(keys)


def name_tests(tests: Iterable[TestRow]) -> NamedTests:
    """Return the tests of an answer by name and type."""
    names = [(test.name, test.type) for test in tests]
    return NamedTests(*hash_roster(names), b"".join([hash_key(each) for each in names]))


def hash_roster(tests: Iterable[tuple[str | None, ...]]) -> tuple[str, str]:
    """Return the key of a list of tests, and the list as JSON."""
    text = msgspec.json.encode(tests)
    return hashlib.sha256(text).hexdigest()[:32], text.decode()


def hash_key(parts: tuple[str | None, ...]) -> bytes:
    """Return the key of a test that these parts identify, in 8 bytes."""
    return hashlib.blake2b(_encode(parts), digest_size=KEY_BYTES).digest()
