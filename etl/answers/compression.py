"""How bodies rest: compressed, without loss."""

import threading

import zstandard

from etl.answers.outcome import Body

ENCODING = "zstd"


def compress(body: bytes, sha256: str) -> Body:
    """Return `body` as it is kept; `sha256` is that of the bytes that were received."""
    with _compressing:
        return Body(_COMPRESSOR.compress(body), ENCODING, len(body), sha256)


# To make one takes longer than to compress a small answer; it serves one thread at a time.
_COMPRESSOR = zstandard.ZstdCompressor(level=3)
_compressing = threading.Lock()


def decompress(compressed: bytes, encoding: str) -> bytes:
    """Return a payload's bytes. Raises ValueError for an encoding this version does not know."""
    if encoding != ENCODING:
        raise ValueError(f"unknown encoding {encoding!r}")
    return zstandard.decompress(compressed)
