"""Damage to a file, by a seeded random generator."""

import random

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


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage the content of a file once or a few times."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        rng.choice(_CHANGES)(damaged, rng)
    return bytes(damaged[: 4 * len(data) + 20_000])


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
