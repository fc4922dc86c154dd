"""The Hugging Face hub: the commit that a branch names, and a repository's files at a commit, whose size is said before."""

import errno
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from textwrap import shorten
from typing import Any

from diffopt.errors import SourceError
from diffopt.text import size

log = logging.getLogger("diffopt")

TRIES = 3
"""Of a transfer that breaks. The client goes on within a file where the other end has closed, and gives up after a reset."""
SPARE = 16 << 20  # bytes that a full disk's last files need
ROOM = "free some with `hf cache rm`, or set HF_HOME to a directory on another disk"
LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token that may read it"


def commit(repo: str, revision: str, kind: str) -> str:
    """The commit that a branch or tag names now; offline, or where the hub cannot be reached, the one that the cache has.

    Raises what the client raises.
    """
    from huggingface_hub import HfApi, constants

    how: Any = {"cache_dir": constants.HF_HUB_CACHE, "local_files_only": constants.HF_HUB_OFFLINE}
    return str(HfApi().resolve_revision(repo, repo_type=kind, revision=revision, **how).resolved)


def download(repo: str, commit: str, kind: str, wanted: Sequence[str], unwanted: Sequence[str] = ()) -> Path:
    """The directory that has those of a repository's files which match `wanted`; no network is asked where all are there.

    Raises what the client raises, and SourceError for a disk on which they have no room.
    """
    from httpx import TransportError
    from huggingface_hub import constants, snapshot_download

    how: Any = {"repo_type": kind, "revision": commit, "allow_patterns": [*wanted], "ignore_patterns": [*unwanted]}
    if constants.HF_HUB_OFFLINE:
        return Path(snapshot_download(repo, local_files_only=True, **how))
    _announce(repo, commit, kind, how)
    for left in reversed(range(TRIES)):
        try:
            return Path(snapshot_download(repo, **how))
        except (TransportError, OSError) as e:
            if not left or not _broken(e):
                raise
            log.info("hub: %s: the transfer broke (%s); it goes on", repo, type(e).__name__)
    raise AssertionError  # the last try has returned or raised


def file(repo: str, name: str, kind: str, revision: str = "main") -> Path:
    """One file of a repository, likewise."""
    pinned = revision if len(revision) == 40 else commit(repo, revision, kind)
    found = download(repo, pinned, kind, [name]) / name
    if not found.is_file():
        raise FileNotFoundError(errno.ENOENT, "the repository has no such file", name)
    return found


def _broken(error: Exception) -> bool:
    """Whether it is a transfer that began and did not end; not a hub that cannot be reached, which the client has tried."""
    from httpx import ConnectError, TransportError

    transport = isinstance(error, TransportError) and not isinstance(error, ConnectError)
    return transport or "Consistency check failed" in str(error)


def listing(repo: str, commit: str, kind: str) -> list[Any]:
    """The client's RepoFile of each file of a repository; from the cache where it was downloaded from before."""
    from huggingface_hub import HfApi, constants, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        return [*get_cached_repo_tree(repo, repo_type=kind, revision=commit, cache_dir=constants.HF_HUB_CACHE)]
    except CachedRepoTreeNotFoundError:
        if constants.HF_HUB_OFFLINE:
            return []
        found = HfApi().list_repo_tree(repo, recursive=True, revision=commit, repo_type=kind)
        return [f for f in found if isinstance(f, RepoFile)]


def _announce(repo: str, commit: str, kind: str, how: Any) -> None:
    """Say what is fetched, and refuse what the disk has no room for."""
    from huggingface_hub import constants
    from huggingface_hub.utils._paths import filter_repo_objects

    tree = listing(repo, commit, kind)
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}"
    by_name = {f.path: f for f in tree}
    names = filter_repo_objects(by_name, allow_patterns=how["allow_patterns"], ignore_patterns=how["ignore_patterns"])
    lacking = [
        by_name[name]
        for name in names
        if not (folder / "snapshots" / commit / name).exists()
        and not (folder / "blobs" / (f.lfs.sha256 if (f := by_name[name]).lfs else f.blob_id)).exists()
    ]
    if not lacking:
        return
    bytes = sum(f.size for f in lacking)
    disk = next(p for p in (folder, *folder.parents) if p.is_dir())
    left = disk_usage(disk).free
    if left < bytes + SPARE:
        raise SourceError(
            f"source: {size(bytes)} are to be downloaded, and the disk of the hub's cache has {size(left)} left "
            f"(got {repo!r}); {ROOM}"
        )
    log.info("hub     %s@%s: %s files, %s to download to %s", repo, commit[:12], len(lacking), size(bytes), folder)


@dataclass(frozen=True)
class Refusal:
    what: str
    advice: str
    there: bool = True
    """Whether the hub is known to have it; else what was named may have been meant as a directory."""


def refusal(error: Exception) -> Refusal:
    """What an error of the client says, in a few words, and what to do about it."""
    from httpx import ConnectError, TransportError
    from huggingface_hub import constants, errors, get_token

    if constants.HF_HUB_OFFLINE:
        part = isinstance(error, errors.IncompleteSnapshotError)
        what = "only a part of it is" if part else "it is not"
        return Refusal(f"{what} in the hub's cache, and HF_HUB_OFFLINE is set", "unset it", part)
    if isinstance(error, errors.LocalEntryNotFoundError | errors.RevisionResolutionError) and isinstance(
        error.__cause__, Exception
    ):
        error = error.__cause__
    token = get_token()
    if isinstance(error, errors.GatedRepoError):
        access = "with the account of your token" if token else f"with your account, then {LOG_IN}"
        advice = f"accept its licence on its page on {constants.ENDPOINT} {access}"
        return Refusal("the hub did not give it: it is gated", advice)
    if isinstance(error, errors.RepositoryNotFoundError):
        hidden = "and that your token may read it" if token else f"if it is private, {LOG_IN}"
        return Refusal("the hub did not give it: there is no such repository", f"check the name, {hidden}", False)
    if isinstance(error, errors.RevisionNotFoundError):
        return Refusal("the hub did not give it: there is no such revision", "check the revision after the @")
    if isinstance(error, errors.EntryNotFoundError):
        return Refusal(f"the hub lacks a file of it: {_last(error)}", "try again later, or name another revision")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refusal("the disk of the hub's cache ran full; what arrived whole is kept", ROOM)
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return _status(error, error.response.status_code)
    if isinstance(error, ConnectError):
        return Refusal(f"the hub cannot be reached ({_first(error)})", "check the network", False)
    if isinstance(error, TransportError) or "Consistency check failed" in str(error):
        what = f"the transfer from the hub broke ({_first(error)}); what arrived whole is kept"
        return Refusal(what, "check the network; the same command goes on")
    return Refusal(f"the hub did not give it: {_first(error)}", "check the network", False)


def _status(error: Any, status: int) -> Refusal:
    if status == 401:
        return Refusal(
            "the hub does not take the token (401)", "run `hf auth login`, or set HF_TOKEN to a token that it takes", False
        )
    if status == 403:
        return Refusal(f"the hub refuses it (403: {_first(error)})", "use a token that may read it")
    if status == 429:
        return Refusal(
            "the hub has had too many requests (429)", "wait some minutes, or set HF_TOKEN, which may ask more often"
        )
    return Refusal(f"the hub is out of order ({status}); what arrived whole is kept", "try again later")


def _first(error: Any) -> str:
    text = getattr(error, "server_message", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shorten(text.strip().splitlines()[0].rstrip("."), 160, placeholder=" ...")


def _last(error: Any) -> str:
    """The file, at the end of the address."""
    path = str(error.response.url.path) if getattr(error, "response", None) is not None else str(error)
    return path.partition("/resolve/")[2].partition("/")[2] or _first(error)
