"""Mutations of bytes, and the repair of checksums."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Sequence

INTERESTING = (0, 1, 2, 15, 16, 127, 128, 255, 256, 4096, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
INTERESTING_64 = (*INTERESTING, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def mutated(source: random.Random, samples: Sequence[bytes], tokens: Sequence[bytes] = ()) -> bytes:
    """Return a sample with one to eight mutations.

    Args:
        tokens: texts of the format, which are inserted.
    """
    content = bytearray(source.choice(samples))
    for _ in range(source.choice((1, 1, 1, 2, 2, 4, 8))):
        _mutate(source, content, samples, tokens)
    return bytes(content)


def _mutate(
    source: random.Random, content: bytearray, samples: Sequence[bytes], tokens: Sequence[bytes]
) -> None:
    size = len(content)
    place = source.randrange(size + 1)
    length = min(source.choice((1, 2, 4, 16, 64, 1024)), size)
    match source.randrange(11 if tokens else 9):
        case 0 if size:  # one bit
            content[place % size] ^= 1 << source.randrange(8)
        case 1 if size:  # one byte
            content[place % size] = source.randrange(256)
        case 2:  # a number
            width, order = source.choice("BHIQ"), source.choice("<>")
            number = source.choice(INTERESTING_64) & ((1 << (8 * struct.calcsize(width))) - 1)
            packed = struct.pack(order + width, number)
            content[place : place + len(packed)] = packed
        case 3:  # a part is missing
            del content[place : place + length]
        case 4:  # a part is repeated, often or seldom
            content[place:place] = content[place : place + length] * source.choice((1, 1, 2, 50))
        case 5:  # random bytes
            content[place:place] = source.randbytes(length)
        case 6:  # the end is missing
            del content[place:]
        case 7:  # a part of another input
            other = source.choice(samples)
            start = source.randrange(len(other) + 1)
            content[place : place + length] = other[start : start + length]
        case 8 if size:  # a part is one repeated byte
            content[place : place + length] = bytes([source.choice((0, 9, 32, 48, 57, 255))]) * length
        case _ if tokens:
            content[place:place] = source.choice(tokens) * source.choice((1, 1, 1, 2, 300))


def png_repaired(content: bytes) -> bytes:
    """Return a PNG with the checksums of its chunks corrected."""
    whole, place = bytearray(content), 8
    while place + 12 <= len(whole):
        (length,) = struct.unpack_from(">I", whole, place)
        end = place + 8 + length
        if end + 4 > len(whole):
            break
        struct.pack_into(">I", whole, end, zlib.crc32(whole[place + 4 : end]))
        place = end + 4
    return bytes(whole)


def tar_repaired(content: bytes) -> bytes:
    """Return a tar with the checksums of all blocks corrected that may be headers."""
    whole = bytearray(content)
    for place in range(0, len(whole) - 511, 512):
        if whole[place + 257 : place + 262] == b"ustar":
            whole[place + 148 : place + 156] = b" " * 8
            whole[place + 148 : place + 156] = b"%06o\0 " % sum(whole[place : place + 512])
    return bytes(whole)
