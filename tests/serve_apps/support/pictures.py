"""Pictures that ask for more than they are."""

from __future__ import annotations

import struct
import zlib


def png(*parts: tuple[bytes, bytes]) -> bytes:
    """A PNG file of these chunks, (kind, data), each with a right checksum."""
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*parts, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _head(side: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)


def bomb(side: int = 60_000) -> bytes:
    """A file of some dozens of bytes that claims side x side pixels."""
    return png(_head(side), (b"IDAT", zlib.compress(bytes(64))))


def profile_bomb(num_bytes: int) -> bytes:
    """A picture of 8 x 8 pixels whose colour profile unpacks to `num_bytes` zeros."""
    profile = b"a\0\0" + zlib.compress(bytes(num_bytes), 9)
    return png(_head(8), (b"iCCP", profile), (b"IDAT", zlib.compress(bytes(8 * 25))))
