"""Compress payloads, without loss."""

import zstandard

from etl.answers.outcome import Body

ENCODING = "zstd"


def compress(body: bytes, sha256: str) -> Body:
    """Return `body` compressed; `sha256` is that of the bytes that the API sent.

    One thread at a time: making a compressor takes longer than compressing a small answer, so
    that all calls share one. `RunFetcher` calls this under its lock.
    """
    return Body(_COMPRESSOR.compress(body), ENCODING, len(body), sha256)


_COMPRESSOR = zstandard.ZstdCompressor(level=3)


def decompress(compressed: bytes, encoding: str) -> bytes:
    """Return a payload's bytes. Raises ValueError for an encoding this version does not know."""
    if encoding != ENCODING:
        raise ValueError(f"unknown encoding {encoding!r}")
    return zstandard.decompress(compressed)
