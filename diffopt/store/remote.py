"""A place in an object storage, through fsspec: `s3://BUCKET/PATH`, `gs://BUCKET/PATH`, and whatever else that speaks."""

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffopt.errors import StoreError, pass_on
from diffopt.store import schemas
from diffopt.store.files import sha256
from diffopt.store.fingerprint import fingerprint

URL = re.compile(r"[a-z][a-z0-9+.-]*://.+")
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""What speaks a protocol, each an extra of diffopt by the protocol's first name."""
EXTRAS = {"s3fs": "s3", "gcsfs": "gs"}
CHUNK = 64 << 20
"""Bytes of an object that are asked for at once: what a broken transfer loses at most."""
RECORD = "record.json"
MOST = 64 << 20
"""Bytes of a record: one of 100,000 files has about 10 MB."""


def is_url(text: str) -> bool:
    return bool(URL.fullmatch(text))


@dataclass(frozen=True)
class Remote:
    url: str
    """Without a slash at its end."""
    known: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)
    """Records that were read."""

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """fsspec's file system, and the path in it. Raises StoreError where the protocol has no package here."""
        from fsspec.core import url_to_fs

        protocol = self.url.partition("://")[0]
        try:
            system, path = url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as e:
            package = PACKAGES.get(protocol)
            how = f"pip install 'diffopt[{EXTRAS[package]}]'" if package else "give s3://BUCKET/PATH or gs://BUCKET/PATH"
            what = f"{protocol}:// needs the package {package}" if package else f"cannot be opened ({_first(e)})"
            raise StoreError(f"store: {what} (got {self.url!r}); {how}") from None
        return system, str(path).rstrip("/")

    def below(self, name: str) -> "Remote":
        return Remote(f"{self.url}/{name}")

    def _path(self, name: str) -> str:
        return f"{self._opened[1]}/{name}"

    def read(self, name: str, most: int = MOST) -> bytes | None:
        """A small object's bytes; None where there is none. Raises StoreError."""
        system, path = self._opened
        try:
            return bytes(system.cat_file(self._path(name), start=0, end=most))
        except FileNotFoundError:
            pass
        except Exception as e:
            raise self._failed(name, e) from None
        bucket = path.partition("/")[0]
        try:
            there = system.exists(bucket)
        except Exception:  # one may read it and not list it
            return None
        if not there:
            raise StoreError(f"store: there is no such bucket (got {self.url!r}); check its name, or make it")
        return None

    def record(self, name: str) -> dict[str, Any] | None:
        """Of the artifact KIND/FINGERPRINT; None where there is none. Raises StoreError for one that is none."""
        if name not in self.known:
            content = self.read(f"{name}/{RECORD}" if name else RECORD)
            if content is None:
                return None
            self.known[name] = self._checked(name, content)
        return self.known[name]

    def _checked(self, name: str, content: bytes) -> dict[str, Any]:
        try:
            found: dict[str, Any] = schemas.parse(content, schemas.Record)
            named = f"{found['kind']}/{fingerprint(found['identity'])}"
        except (ValueError, TypeError, ValidationError) as e:
            raise self._changed(f"{name}/{RECORD}".lstrip("/"), f"is no record ({e})") from None
        if name and named != name:
            raise self._changed(f"{name}/{RECORD}", f"is that of {named}")
        return found

    def fetch(self, name: str, about: dict[str, Any], to: Path) -> None:
        """An object whole to `to`, where it goes on after what is there already. Raises StoreError, which names the object,
        where it does not arrive or has another sha256 than `about` says."""
        to.parent.mkdir(parents=True, exist_ok=True)
        system, size = self._opened[0], int(about["size"])
        there = to.stat().st_size if to.is_file() else 0
        if there > size:
            to.unlink()
            there = 0
        with to.open("ab") as f:
            while there < size:
                try:
                    part = system.cat_file(self._path(name), start=there, end=min(there + CHUNK, size))
                except Exception as e:
                    if (found := self._size(name)) is not None and found < size:
                        raise self._changed(name, f"has {found} bytes, but was made with {size}") from None
                    raise self._failed(name, e) from None
                if not part:
                    raise self._changed(name, f"has {there} bytes, but was made with {size}")
                f.write(part)
                there += len(part)
        if sha256(to) != about["sha256"]:
            to.unlink()
            raise self._changed(name, "has other bytes than when it was made")

    def _size(self, name: str) -> int | None:
        """Of an object; None where that cannot be told."""
        try:
            return int(self._opened[0].info(self._path(name))["size"])
        except Exception:
            return None

    def send(self, file: Path, name: str) -> None:
        """A file to an object, which is there whole or not at all. Raises StoreError, which names it."""
        try:
            self._opened[0].put_file(str(file), self._path(name))
            there = self._opened[0].info(self._path(name))["size"]
        except Exception as e:
            raise self._failed(name, e) from None
        if there != file.stat().st_size:
            raise StoreError(
                f"store: the object arrived with {there} bytes (got {self.url}/{name}); give the same command again"
            )

    def write(self, name: str, content: Any) -> None:
        """A small object of JSON."""
        try:
            self._opened[0].pipe_file(self._path(name), json.dumps(content).encode())
        except Exception as e:
            raise self._failed(name, e) from None

    def drop(self, name: str) -> None:
        try:
            self._opened[0].rm_file(self._path(name))
        except FileNotFoundError:
            return
        except Exception as e:
            raise self._failed(name, e) from None

    def names(self) -> list[str]:
        """The objects below it."""
        system, path = self._opened
        try:
            return sorted(str(found).removeprefix(f"{path}/") for found in system.find(path))
        except FileNotFoundError:
            return []
        except Exception as e:
            raise self._failed("", e) from None

    def _changed(self, name: str, what: str) -> StoreError:
        return StoreError(f"store: the object {what} (got {self.url}/{name}); export it there again")

    def _failed(self, name: str, error: Exception) -> StoreError:
        """Of what the storage or the network says, in whatever library's class."""
        pass_on(error)
        if isinstance(error, StoreError):
            return error
        text, where = _first(error), f"{self.url}/{name}".rstrip("/")
        if isinstance(error, FileNotFoundError):
            return StoreError(f"store: there is no such object (got {where}); export it there again")
        if isinstance(error, PermissionError) or "credential" in text.lower():
            return StoreError(
                f"store: the storage refuses it ({text}) (got {where}); give it credentials that may, as AWS_PROFILE or "
                "AWS_ACCESS_KEY_ID for s3, `gcloud auth application-default login` for gs"
            )
        return StoreError(f"store: the transfer broke ({text}) (got {where}); the same command goes on")


def _first(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:160]
