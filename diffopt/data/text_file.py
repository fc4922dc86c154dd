"""Files of text as people have them: in UTF-8, with the mark that Windows puts in front or without."""

import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from pathlib import Path
from shlex import quote

from diffopt.store.files import content as plain

MARKS = {BOM_UTF32_LE: "UTF-32", BOM_UTF32_BE: "UTF-32", BOM_UTF16_LE: "UTF-16", BOM_UTF16_BE: "UTF-16"}
"""The longer first: UTF-32's begins with UTF-16's."""
MOST = 256 << 20
"""Bytes of a file of texts, unpacked."""
GZIP = b"\x1f\x8b"


def read(path: Path) -> str:
    """The text of a file, which may be packed by gzip, its lines ending in `\\n` alone.

    Raises OSError, and ValueError, as `what is wrong; what to do`, for another encoding, which it names, and for no text.
    """
    content = _unpacked(plain(path, MOST))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(_otherwise(content, e.start, path)) from None
    if "\0" in text:
        raise ValueError(_otherwise(content, content.index(0), path))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _unpacked(content: bytes) -> bytes:
    """What gzip packed, or the same. No more than MOST is unpacked: of zeros gzip leaves a thousandth."""
    if not content.startswith(GZIP):
        return content
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        found = unpacker.decompress(content, MOST + 1)
    except zlib.error:
        raise ValueError("is packed by gzip, and broken; copy it again") from None
    if len(found) > MOST:
        raise ValueError(f"has more than {MOST} bytes when it is unpacked; give a part of it")
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("is packed by gzip, and cut off or followed by more; copy it again, or unpack it first")
    return found


def lines(text: str) -> list[str]:
    """Its lines. What else Python takes for an end of one, as U+2028 or a vertical tab, stands within texts from the web."""
    return text.split("\n")


def _otherwise(content: bytes, start: int, path: Path) -> str:
    """Of a file that is not UTF-8, which is at fault from the byte `start` on."""
    name = _wide(content)
    if name:
        return f"is {name}, not UTF-8; {_advice(name, path)}"
    name = "cp1252" if _decodes(content, "cp1252") else "latin-1"  # five bytes are nothing in cp1252
    word = content[start : start + 1].decode(name)
    if 0 in content or not word.isprintable():
        return "is not a text file; give one in UTF-8"
    line = content[:start].count(b"\n") + 1
    return (
        f"is not UTF-8 but {name} as it seems, by the byte {content[start]:#04x} in line {line}, there {word!r}; "
        f"{_advice(name, path)}"
    )


def _wide(content: bytes) -> str | None:
    """UTF-16 or UTF-32, by its mark or, without one, by the zeros that are every other byte of Latin letters."""
    name = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    if name:
        return name if _decodes(content, name) else None
    half = len(content) // 2
    zeros = max(content[0::2].count(0), content[1::2].count(0))
    return "UTF-16" if half and zeros > 0.8 * half and content.count(0) < 1.1 * half else None


def _decodes(content: bytes, name: str) -> bool:
    try:
        content.decode(name)
    except UnicodeDecodeError:
        return False
    return True


def _advice(name: str, path: Path) -> str:
    return f"save it as UTF-8, or `iconv -f {name} -t UTF-8 {quote(path.name)}`"
