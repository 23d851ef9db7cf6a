"""Compress payloads, without loss."""

import threading

import zstandard

from etl.answers.outcome import Body

ENCODING = "zstd"


def compress(body: bytes, sha256: str) -> Body:
    """Return `body` compressed; `sha256` is that of the bytes that the API sent.

    Locks the compressor, which serves one thread at a time. Making one takes longer than
    compressing a small answer, so all threads share it.
    """
    with _compressor_lock:
        return Body(_COMPRESSOR.compress(body), ENCODING, len(body), sha256)


_COMPRESSOR = zstandard.ZstdCompressor(level=3)
_compressor_lock = threading.Lock()


def decompress(compressed: bytes, encoding: str) -> bytes:
    """Return a payload's bytes. Raises ValueError for an encoding this version does not know."""
    if encoding != ENCODING:
        raise ValueError(f"unknown encoding {encoding!r}")
    return zstandard.decompress(compressed)
