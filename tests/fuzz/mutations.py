"""Damage to a file, by a seeded random generator: to bytes, or to what a format is made of.

Bytes that are changed anywhere are mostly refused at once: by a checksum, or by the syntax. So half of the files are
damaged where a reader comes to later: values of a text, entries of a TIFF directory, chunks of a PNG (with the right
checksum), the header of a safetensors file.
"""

import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress

__all__ = ["mutate"]

_EDGES = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_WORDS = (
    b"", b"null", b"NaN", b"-1", b"1e999", b"1e-999", b"9" * 400, b"[]", b"{}", b'""', b"true", b"\x00", b"\xff\xfe",
    b"'", b'"',
    b"=1+1", b"\r\n", b"\n", b"&a ", b"*a", b"!!float x", b"!!binary x", b"2024-13-45", b"!!python/object:os.system x",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;", b"<![CDATA[", b"]]>", b"%s%n", b"../../etc/passwd", b"\xe2\x80\xae",
    b"[" * 2000, b"{" * 300, b"- " * 500, b"<a>" * 500, b"0x10", b"1_0", b"1:30", b"~", b"|", b"? ", b"<<: ",
    "µ".encode(), "日本".encode("shift-jis"), b"\xed\xa0\x80",
)  # fmt: skip

_VALUES = (
    b"0", b"1", b"3", b"-0.5", b"0.25", b"1e9", b"1e300", b"4294967296", b'"', b'"a"', b'""', b"null", b"true",
    b"[1,2]", b'{"a":1}', b"[[0,0],[9,9],[0,9]]", b"2147483648", b"99999999999999999999", b'"/etc/passwd"', b'"F64"',
    b"\xc3\xa4",
)  # fmt: skip
_TAGS = (254, 256, 257, 258, 259, 262, 270, 273, 274, 277, 278, 279, 282, 284, 296, 305, 317, 320, 322, 323, 324, 325,
         330, 338, 339, 347, 700, 32996, 34665, 50839)  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage the content of a file once or a few times."""
    damaged = bytearray(data)
    parts = _parts_of(data) if rng.random() < 0.5 else _CHANGES
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        rng.choice(parts)(damaged, rng)
    return bytes(damaged[: 4 * len(data) + 20_000])


def _parts_of(data: bytes) -> tuple[Callable[[bytearray, random.Random], None], ...]:
    """The changes that know the format of a file."""
    if data[:4] in (b"II*\0", b"II+\0"):
        return (_tiff_entry,)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return (_png_chunk,)
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return (_safetensors_header,)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return _CHANGES
    return (_token,)


def _token(data: bytearray, rng: random.Random) -> None:
    """Replace a word, number or string of a text by another one of it, or by an unusual one; or repeat a line."""
    if rng.random() < 0.1:
        lines = bytes(data).split(b"\n")
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
        data[:] = b"\n".join(lines)
        return
    tokens = list(re.finditer(rb'"[^"]*"|[\w.+-]+', data))
    if tokens:
        one, other = rng.choice(tokens), rng.choice(tokens)[0]
        data[one.start() : one.end()] = rng.choice((other, rng.choice(_WORDS), rng.choice(_VALUES)))


def _tiff_entry(data: bytearray, rng: random.Random) -> None:
    """Change the tag, type, count or value of an entry of a directory of a little-endian TIFF."""
    wide = data[2:3] == b"+"
    head, entry, number, word = (8, 20, "<Q", 8) if wide else (4, 12, "<H", 4)
    offset, places = int.from_bytes(data[head : head + word], "little"), []
    for _ in range(4):
        if not 8 <= offset < len(data) - 16:
            break
        count = struct.unpack_from(number, data, offset)[0]
        start = offset + struct.calcsize(number)
        places += [start + entry * each for each in range(min(count, 40))]
        end = start + entry * count
        offset = int.from_bytes(data[end : end + word], "little")
    places = [place for place in places if place + entry <= len(data)]
    if not places:
        return
    at, part = rng.choice(places), rng.randrange(5)
    if part == 0:
        data[at : at + 2] = rng.choice(_TAGS).to_bytes(2, "little")
    elif part == 1:
        data[at + 2 : at + 4] = rng.randrange(20).to_bytes(2, "little")
    elif part == 2:
        data[at + 4 : at + 4 + word] = (rng.choice((0, 1, 2, 3, 4, *_EDGES)) % 2 ** (8 * word)).to_bytes(word, "little")
    else:
        value = rng.choice((*range(9), 16, 32, 64, rng.randrange(len(data)), rng.randrange(70000), *_EDGES))
        data[at + 4 + word : at + entry] = (value % 2 ** (8 * word)).to_bytes(word, "little")


def _png_chunk(data: bytearray, rng: random.Random) -> None:
    """Damage, repeat or remove a chunk of a PNG; the checksums are right."""
    chunks, at = list[tuple[bytes, bytes]](), 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        chunks.append((bytes(data[at + 4 : at + 8]), bytes(data[at + 8 : at + 8 + length])))
        at += 12 + length
    if not chunks:
        return
    number, change = rng.randrange(len(chunks)), rng.randrange(5)
    kind, content = chunks[number]
    if change == 0:
        chunks.insert(rng.randrange(len(chunks) + 1), (kind, content))
    elif change == 1:
        del chunks[number]
    elif change == 2:
        kinds = (b"tRNS", b"PLTE", b"pHYs", b"eXIf", b"iCCP", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"zTXt", b"iTXt")
        chunks.insert(rng.randrange(len(chunks) + 1), (rng.choice(kinds), rng.randbytes(rng.choice((0, 1, 6, 9, 26)))))
    else:
        damage = rng.choice((_flip, _byte, _number, _cut, _remove))
        changed = bytearray(content)
        if kind == b"IDAT" and change == 3:
            with suppress(zlib.error):  # it was damaged before
                pixels = bytearray(zlib.decompress(content))
                damage(pixels, rng)
                changed = bytearray(zlib.compress(pixels))
        else:
            damage(changed, rng)
        chunks[number] = kind, bytes(changed)
    data[8:] = b"".join(
        len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4) for kind, content in chunks
    )


def _safetensors_header(data: bytearray, rng: random.Random) -> None:
    """Change the header of a safetensors file, and state its new length."""
    length = int.from_bytes(data[:8], "little")
    header = bytearray(data[8 : 8 + length])
    _token(header, rng)
    try:
        json.loads(header)
    except (ValueError, RecursionError):
        if rng.random() < 0.7:  # mostly valid JSON, so that what it states is read
            return
    data[: 8 + length] = len(header).to_bytes(8, "little") + header


def _at(data: bytearray, rng: random.Random) -> int:
    # headers are at the beginning, TIFF directories often at the end
    place = rng.random()
    within = min(len(data), 256)
    if place < 0.5:
        return rng.randrange(within + 1)
    return len(data) - rng.randrange(within + 1) if place < 0.75 else rng.randrange(len(data) + 1)


def _flip(data: bytearray, rng: random.Random) -> None:
    if (at := _at(data, rng)) < len(data):
        data[at] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, rng: random.Random) -> None:
    if (at := _at(data, rng)) < len(data):
        data[at] = rng.randrange(256)


def _number(data: bytearray, rng: random.Random) -> None:
    at, width = _at(data, rng), rng.choice((1, 2, 4, 8))
    value = rng.choice(_EDGES) % 2 ** (8 * width)
    data[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[_at(data, rng) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    del data[at : at + rng.randrange(1, 64)]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    data[at:at] = data[at : at + rng.randrange(1, 256)] * rng.choice((1, 2, 50))


def _zero(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    stop = min(len(data), at + rng.randrange(1, 64))
    data[at:stop] = bytes(max(0, stop - at))


def _move(data: bytearray, rng: random.Random) -> None:
    start, to = _at(data, rng), _at(data, rng)
    block = data[start : start + rng.randrange(1, 64)]
    data[to : to + len(block)] = block


def _word(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    data[at : at + rng.choice((0, 1, 4))] = rng.choice(_WORDS)


def _value(data: bytearray, rng: random.Random) -> None:
    """Replace a number of a text by an unusual one."""
    digits = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if digits:
        at = rng.choice(digits)
        data[at : at + 1] = rng.choice(_WORDS[:10])


_CHANGES = (_flip, _byte, _number, _cut, _remove, _repeat, _zero, _move, _word, _value)
