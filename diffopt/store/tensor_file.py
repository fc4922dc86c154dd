"""Files of safetensors and GGUF by their headers alone. Imports no torch, nor for safetensors the library, which imports numpy.

What is wrong with one is a ValueError, `what; advice`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffopt.files.json_file import loaded
from diffopt.store import files

SUFFIX, GGUF = ".safetensors", ".gguf"
MOST = 100 << 20  # bytes of a header, as the library has it


@dataclass(frozen=True)
class Tensor:
    """Of a file of safetensors, by its header."""

    dtype: str
    """As the header has it: F8_E4M3, U8."""
    shape: tuple[int, ...]
    file: Path
    start: int
    """Where in the file its bytes begin."""
    size: int
    """In bytes."""

    def text(self) -> str:
        """Of one of bytes that are a text."""
        with self.file.open("rb") as f:
            f.seek(self.start)
            return f.read(self.size).decode()


def tensors(path: Path) -> Mapping[str, Tensor]:
    """Of a file, or of all files of a folder, by their headers."""
    if path.suffix == GGUF:
        return _of_gguf(path, path.stat().st_mtime_ns)
    files = [path] if path.is_file() else sorted(path.glob(f"*{SUFFIX}"))
    if not files:
        raise ValueError(f"has no {SUFFIX} file in {path.name}; copy or download it again")
    for listing in () if path.is_file() else path.glob(f"*{SUFFIX}.index.json"):  # not of a pickle's shards
        named = {str(x) for x in json_object(listing).get("weight_map", {}).values()}
        if lacking := sorted(named - {p.name for p in files}):
            raise ValueError(f"lacks {lacking[0]}, which {listing.name} names; copy or download what is missing")
    return {n: x for p in files for n, x in _header(p, p.stat().st_mtime_ns)[0].items()}


@cache
def _of_gguf(path: Path, _changed: int) -> Mapping[str, Tensor]:
    """Under the types that llama.cpp has, such as Q4_K and F16, and in torch's order of lengths."""
    if find_spec("gguf") is None:
        raise ValueError(f"{path.name} needs the package gguf; `pip install 'diffopt[gguf]'`, or give a {SUFFIX} file")
    from gguf import GGUFReader

    try:
        rows = GGUFReader(path).tensors
        return {
            str(t.name): Tensor(t.tensor_type.name, tuple(map(int, t.shape[::-1])), path, int(t.data_offset), int(t.n_bytes))
            for t in rows
        }
    except Exception as e:  # numpy's and the package's own, of a file that is cut off or is none
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:120]
        raise ValueError(f"{path.name} is no {GGUF} file that can be read: {reason}; download it again") from None


def metadata(file: Path) -> Mapping[str, str]:
    return _header(file, file.stat().st_mtime_ns)[1]


@cache
def _header(path: Path, _changed: int) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """The library that reads them imports numpy, which takes as long as all else of a plan."""
    whole = path.stat().st_size
    try:
        with path.open("rb") as f:
            size = int.from_bytes(f.read(8), "little")
            if size > min(MOST, whole):
                raise ValueError
            header = loaded(f.read(size))
        about = header.pop("__metadata__", {})
        ends = {n: x["data_offsets"] for n, x in header.items()}
        found = {
            n: Tensor(x["dtype"], tuple(x["shape"]), path, 8 + size + ends[n][0], ends[n][1] - ends[n][0])
            for n, x in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(f"{path.name} has a header that is none of a {SUFFIX} file; download it again") from None
    last = 8 + size + max((e[1] for e in ends.values()), default=0)
    if last != whole:
        raise ValueError(f"{path.name} is cut off: it has {whole} bytes of {last}; copy or download it again")
    return found, about


def json_object(path: Path) -> dict[str, Any]:
    try:
        return files.json_object(path)
    except (OSError, ValueError):
        raise ValueError(f"{path.parent.name}/{path.name} is broken, it is no JSON object; copy or download it again") from None


def order(path: Path) -> None:
    """Put what a file of safetensors says beside its tensors into the order of its names, in place: the library writes it in
    the order of a hash table, which is another in each process, and the same numbers are to be the same bytes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise ValueError(f"has a header of {length} bytes, which takes {len(text)} in another order; report it")
        file.seek(8)
        file.write(text.ljust(length))  # the format's own padding
