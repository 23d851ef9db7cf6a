"""The tests of an answer by name and type, which identify a test from run to run as a rule.

Computed where the answer is read, beside the process that stores it.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from etl.answers.rows import TestRow

KEY_BYTES = 8
MOST_LISTS = 256
"""The lists of tests whose keys are remembered: 4 MiB for the largest runs."""
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


class TestNamer:
    """Names the tests of answers, and remembers the keys of lists: most lists recur."""

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}

    def name(self, tests: Iterable[TestRow]) -> NamedTests:
        """Return the tests of an answer by name and type."""
        names = [(test.name, test.type) for test in tests]
        roster_id, text = hash_roster(names)
        keys = self._keys.get(roster_id)
        if keys is None:
            keys = b"".join([hash_key(each) for each in names])
            if len(self._keys) == MOST_LISTS:
                self._keys.clear()
            self._keys[roster_id] = keys
        return NamedTests(roster_id, text, keys)


def name_tests(tests: Iterable[TestRow]) -> NamedTests:
    """Return the tests of one answer by name and type."""
    return TestNamer().name(tests)


def hash_roster(tests: Iterable[tuple[str | None, ...]]) -> tuple[str, str]:
    """Return the key of a list of tests, and the list as JSON."""
    text = msgspec.json.encode(tests)
    return hashlib.sha256(text).hexdigest()[:32], text.decode()


def hash_key(parts: tuple[str | None, ...]) -> bytes:
    """Return the key of a test that these parts identify, in 8 bytes."""
    return hashlib.blake2b(_encode(parts), digest_size=KEY_BYTES).digest()
