"""Where a model comes from, and which exact version of it: a directory by content, a hub repository by commit."""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from diffopt.errors import PlanError, SourceError, pass_on
from diffopt.store import assets, hub, schemas
from diffopt.store.composed import FILES, Extension, composed, passing, refused
from diffopt.store.files import publish
from diffopt.store.fingerprint import fingerprint
from diffopt.store.tensor_file import SUFFIX

log = logging.getLogger("diffopt")

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
HUB, DATA_SETS = "hub:", "datasets/"
COMMIT = re.compile(r"[0-9a-f]{40}")
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
"""Texts that are passed on with a model's weights."""
CARD = "README.md"
WANTED = ["model_index.json", "*/*", CARD, *LICENCES]
"""Files of a hub repository that a diffusers pipeline is made of: those in its components' folders; and its licence."""
UNWANTED = ["*.bin", "*.ckpt", "*.onnx", "*.onnx_data", "*.msgpack", "*.h5", "*.fp16.*", "*.non_ema.*"]
"""The same weights in other forms, which would be downloaded for nothing."""
PART = ["config.json", "diffusion_pytorch_model*.safetensors*", "model*.safetensors*"]
"""Files of one part of a pipeline, as save_pretrained writes it."""
SCORER = ["*.json", "*.txt", "*.safetensors", "ImageReward.pt"]
"""Files of a hub repository of a model that scores pictures, which lie at its top."""
ADAPTER = "*.safetensors"
"""Of a hub repository of an adapter that names no file: the one at its top."""
PICTURES = [f"*.{e}" for e in ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "zip", "tar")]
DATA = ["*.parquet", "*.arrow", "*.csv", "*.json", "*.jsonl", "README.md", *PICTURES]
"""Files of a hub repository of a data set, and the card that says which of them are which."""
LOCAL = "the path of a local copy"
"""What can be given for a source that the hub does not give: the end of the advice."""
VARIANT = ":variant="
"""In a digest of the hub, before the variant of the weights."""
QUICK = 256 << 20  # bytes that planning may hash without being slow: about half a second


@dataclass(frozen=True)
class Source:
    """`name` is a directory, `asset:DIR`, or `ORG/NAME[@REVISION]` of the Hugging Face hub; of an adapter, or of weights in a
    single file, that."""

    name: str
    scores: bool = False
    """It scores pictures: its files on the hub are not in the folders of a pipeline."""
    adapter: str | None = None
    """It is a LoRA adapter: a local file, or on the hub the one that this glob names."""
    variant: str | None = None
    """It is a model whose weights are wanted as *.VARIANT.*; matters on the hub alone, where others need no download."""
    data: bool = False
    """It is a data set: `name` is a directory, or `hub:ORG/NAME[@REVISION]`, which is another repository than a model's."""
    part: str | None = None
    """It is that part of a pipeline alone: of a hub repository the files at its top, or in the folder of that name."""
    own: tuple[tuple[str | None, "Source"], ...] = ()
    """It is a pipeline some of whose parts come from elsewhere, by their names; None where the files tell."""
    extension: Extension | None = None
    """What its pipeline becomes by parts of `own` that it lacks."""

    @property
    def directory(self) -> Path | None:
        """The local directory, or None for a hub repository, or one with parts of the hub. Raises ValueError where a part fits
        none of the pipeline's."""
        path = assets.locate(self.name)
        here = {n: s.local for n, s in self.own} if path.is_dir() else {}
        return self.composed(path, here) if path.is_dir() and all(here.values()) else None

    @property
    def local(self) -> Path | None:
        """The local directory, or the file of an adapter or of weights; None for a hub repository."""
        path = assets.locate(self.name)
        return path if (self.adapter or path.suffix in FILES) and path.is_file() else self.directory

    def composed(self, path: Path, here: Mapping[str | None, Path | None]) -> Path:
        """The pipeline in `path` with its own parts, which are `here`. Raises ValueError as `directory`."""
        return composed(path, tuple((n, p) for n, p in here.items() if p), self.extension) if self.own else path

    @property
    def hub(self) -> tuple[str, str]:
        """Repository and revision on the hub."""
        found = HUB_ID.fullmatch(self.name.removeprefix(HUB) if self.data else self.name)
        assert found is not None  # `read` lets nothing else through
        return found["repo"], found["revision"] or "main"

    @property
    def repo_type(self) -> str:
        """The hub client's name of its kind of repository."""
        return "dataset" if self.data else "model"


def read(value: object) -> Source:
    """Raises ValueError for what can be neither a directory nor a hub id."""
    if isinstance(value, Source):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("is not a model; give a directory or a hub id such as org/name")
    source = Source(value)
    if (path := assets.locate(value)).is_file() and (reason := refused(path)):
        raise ValueError(reason)
    looks_local = value.startswith(("/", ".", "~", assets.PREFIX)) or not HUB_ID.fullmatch(value) or value.endswith(FILES)
    if looks_local and source.local is None:
        raise ValueError("is not a directory; check the path, or give a hub id such as org/name")
    return source


def read_scorer(value: object) -> Source:
    """As `read`; a file stands for the directory that it is in. Raises ValueError like it."""
    if isinstance(value, str) and (path := assets.locate(value)).is_file():
        value = str(path.parent)
    return replace(read(value), scores=True)


def read_adapter(value: object) -> Source:
    """A file, or a hub id. Raises ValueError for what can be neither."""
    if isinstance(value, Source):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("is not an adapter; give a .safetensors file, its directory, or a hub id such as org/name")
    source = Source(value, adapter=ADAPTER)
    looks_local = value.startswith(("/", ".", "~", assets.PREFIX)) or not HUB_ID.fullmatch(value) or value.endswith(SUFFIX)
    if looks_local and source.local is None:
        raise ValueError("is neither a file nor a directory; check the path, or give a hub id such as org/name")
    return source


def read_data(value: object) -> Source:
    """A data set. Raises ValueError for what can be neither a directory with files nor a data set on the hub."""
    if isinstance(value, Source):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("is no data; give synthetic, a directory of pictures with captions, or hub:ORG/NAME")
    source = Source(value, data=True)
    if value.startswith(HUB):
        if not HUB_ID.fullmatch(value.removeprefix(HUB)):
            raise ValueError("is not a data set; write hub:ORG/NAME or hub:ORG/NAME@REVISION")
    elif source.directory is None:
        raise ValueError("is not a directory; check the path, or write hub:ORG/NAME for a data set of the hub, or synthetic")
    elif not _files(source.directory):
        raise ValueError("is an empty directory; put pictures in it, and a metadata.jsonl with file_name and text of each")
    return source


ModelSource = Annotated[Source, BeforeValidator(read), PlainSerializer(lambda s: s.name)]
ScorerSource = Annotated[Source, BeforeValidator(read_scorer), PlainSerializer(lambda s: s.name)]
AdapterSource = Annotated[Source, BeforeValidator(read_adapter), PlainSerializer(lambda s: s.name)]


@dataclass
class Sources:
    """Resolves sources to digests, and remembers in `memory` (a JSON file in the store) what cost time or a network.

    A file is hashed again only when its size or mtime changed. `dry` is for planning: nothing is written, no
    network is asked and no more than QUICK bytes are hashed; what would need more is unresolved (None).
    """

    memory: Path
    dry: bool = False
    shared: tuple[Path, ...] = ()
    """Memories of shared stores, which say at which commits a team uses the hub's branches."""
    resolved: dict[str, Source] = field(default_factory=dict)
    seen: dict[Source, str | None] = field(default_factory=dict)
    """What a dry one has answered: the jobs of a sweep ask for the same sources."""
    doubted: bool = False
    """Whether it was said that the memory is none."""

    def digest(self, source: Source) -> str | None:
        """`sha256:...` of the files, `hub:REPO@COMMIT`, of a data set `hub:datasets/REPO@COMMIT`, or of an adapter
        `hub:REPO@COMMIT:FILE`; None only when `dry`."""
        if self.dry:
            if source not in self.seen:
                self.seen[source] = self._content(source.local) if source.local else self._hub(source)
            return self.seen[source]
        found = self._content(source.local) if source.local else self._hub(source)
        if found:
            self.resolved[found] = source
        return found

    def at_hand(self, source: Source) -> Path | None:
        """Where its files are already, by what is remembered and the hub's cache; None where they are not."""
        if source.local:
            return source.local
        if source.own:
            base, here = self.at_hand(replace(source, own=())), {n: self.at_hand(s) for n, s in source.own}
            if not base or not all(here.values()):
                return None
            try:
                return source.composed(base, here)
            except ValueError:  # a download that began and did not end
                return None
        repo, revision = source.hub
        repo = (DATA_SETS if source.data else "") + repo
        commit = revision if COMMIT.fullmatch(revision) else self._remembered().get(f"{repo}@{revision}")
        if not commit:
            return None
        from huggingface_hub.constants import HF_HUB_CACHE

        kind = f"{source.repo_type}s--" + repo.removeprefix(DATA_SETS).replace("/", "--")
        found = Path(HF_HUB_CACHE) / kind / "snapshots" / commit
        return found if found.is_dir() else None

    def branches(self) -> dict[str, str]:
        """The commits at which branches and tags of the hub are used, by `ORG/NAME@BRANCH`."""
        return {name: commit for name, commit in self._remembered().items() if not name.startswith("/") and "@" in name}

    def ask_again(self, branch: str) -> str:
        """The commit that a branch names now, at which it is used from now on. Raises PlanError where the hub does not tell."""
        name = branch.removeprefix(DATA_SETS)
        data = name != branch
        commit = _commit(Source(HUB + name if data else name, data=data))
        self._remember(self._remembered() | {branch: commit})
        return commit

    def pinned(self, source: Source) -> str:
        """The digest of a source that this run's plan has resolved."""
        found = self.digest(source)
        assert found is not None
        return found

    def locate(self, digest: str) -> Path:
        """The directory of a source resolved in this run, or an adapter's file; downloads a hub repository at its commit."""
        source = self.resolved[digest]
        if source.local:
            return source.local
        if source.own:
            base = self.locate(self.pinned(replace(source, own=())))
            here: dict[str | None, Path | None] = {n: self.locate(self.pinned(s)) for n, s in source.own}
            try:
                return source.composed(base, here)
            except ValueError as e:
                what, _, advice = str(e).partition("; ")
                where = "base" if None in here else "parts"
                raise SourceError(f"model.{where}: {what} (got {source.name!r}); {advice}") from None
        pinned = digest.removeprefix(HUB).removeprefix(DATA_SETS if source.data else "")
        repo, commit = pinned.partition(":")[0].split("@")

        def download(wanted: list[str], unwanted: list[str]) -> Path:
            return hub.download(repo, commit, source.repo_type, wanted, unwanted)

        try:
            if source.data:
                return download(DATA, [])
            if source.part:
                return download([*PART, *(f"{source.part}/{p}" for p in PART), CARD, *LICENCES], UNWANTED)
            if not source.scores:
                unwanted = [] if source.adapter else _unwanted(repo, commit, source.variant)
                found = download([source.adapter] if source.adapter else WANTED, unwanted)
                return _only_file(found, source) if source.adapter else found
            found = download(SCORER, [])
            if not [*found.glob("*.safetensors"), *found.glob("*.pt")]:  # an older repository
                found = download([*SCORER, "pytorch_model.bin", "open_clip_pytorch_model.bin"], [])
            return found
        except SourceError:
            raise
        except Exception as e:
            raise _unreachable(source, e) from None

    def _content(self, root: Path) -> str | None:
        files = _files(root)
        known = self._remembered()
        keys = {p: f"{p.resolve()}:{(s := p.stat()).st_size}:{s.st_mtime_ns}" for p in files}
        fresh = [p for p in files if keys[p] not in known]
        if self.dry and sum(p.stat().st_size for p in fresh) > QUICK:
            return None
        hashed = {p: _hash(p) for p in fresh}
        if lasting := {keys[p]: x for p, x in hashed.items() if not passing(p)}:
            self._remember(known | lasting)
        known |= {keys[p]: x for p, x in hashed.items()}
        return "sha256:" + fingerprint({str(p.relative_to(root)): known[keys[p]] for p in files})

    def _hub(self, source: Source) -> str | None:
        if source.own:
            found = {"": self.digest(replace(source, own=()))} | {str(n): self.digest(s) for n, s in source.own}
            return "sha256:" + fingerprint(found) if all(found.values()) else None
        repo, revision = source.hub
        repo = (DATA_SETS if source.data else "") + repo
        kinds = {":": source.adapter, VARIANT: source.variant, ":part=": source.part}
        file = next((f"{mark}{name}" for mark, name in kinds.items() if name), "")
        if COMMIT.fullmatch(revision):
            return f"{HUB}{repo}@{revision}{file}"
        known = self._remembered()
        if commit := known.get(f"{repo}@{revision}") or self._shared(f"{repo}@{revision}"):
            return f"{HUB}{repo}@{commit}{file}"
        if self.dry:
            return None
        commit = _commit(source)
        self._remember(known | {f"{repo}@{revision}": commit})
        return f"{HUB}{repo}@{commit}{file}"

    def _shared(self, branch: str) -> str | None:
        for memory in self.shared:
            with contextlib.suppress(OSError, ValueError):  # one that its owner's `verify` tells of
                if commit := schemas.read(memory, schemas.Memory).get(branch):
                    return str(commit)
        return None

    def _remembered(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = schemas.read(self.memory, schemas.Memory)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as e:  # a lost memory costs time only
            if not self.doubted:
                log.warning("note: %s is not read (%s); what it remembered is hashed again", self.memory.name, e)
            self.doubted = True
            return {}
        return found

    def _remember(self, known: dict[str, Any]) -> None:
        if self.dry:
            return
        # the store says so itself when it comes to artifacts; without a memory files are hashed again
        with contextlib.suppress(OSError):
            publish(self.memory, json.dumps(known, indent=1, sort_keys=True))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(root: Path) -> list[Path]:
    """Every file below `root`, hidden ones left out; links are followed, a directory is entered once. Or `root`, a file."""
    if root.is_file():
        return [root]
    found: list[Path] = []
    entered: set[Path] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        here = Path(folder)
        entered.add(here.resolve())
        below[:] = [d for d in below if not d.startswith(".") and (here / d).resolve() not in entered]
        found += [here / n for n in names if not n.startswith(".") and (here / n).is_file()]
    return sorted(found)


def _unwanted(repo: str, commit: str, variant: str | None) -> list[str]:
    """Patterns of a repository's files that are not read: weights in other forms, plain ones where the variant is there."""
    if variant is None:
        return UNWANTED
    others = [p for p in UNWANTED if p != f"*.{variant}.*"]
    files = [f.path for f in hub.listing(repo, commit, "model")]
    own = {f.rpartition("/")[0] for f in files if f".{variant}" in f}
    plain = [f for f in files if f.endswith(SUFFIX) and f.rpartition("/")[0] in own and f".{variant}" not in f]
    return others + plain


def _only_file(directory: Path, source: Source) -> Path:
    """The adapter's file in the snapshot of its repository. Raises SourceError where it is not one."""
    assert source.adapter is not None
    files = sorted(str(p.relative_to(directory)) for p in directory.glob(source.adapter))
    if len(files) == 1:
        return directory / files[0]
    advice = f"set its weight_name, one of {', '.join(files)}" if files else "set its weight_name to a file that is there"
    raise SourceError(f"model.lora: the repository holds {len(files)} files {source.adapter} (got {source.name!r}); {advice}")


def _commit(source: Source) -> str:
    """The commit that a branch or tag of a hub repository names now; from the local cache when offline."""
    repo, revision = source.hub
    try:
        return hub.commit(repo, revision, source.repo_type)
    except Exception as e:
        raise _unreachable(source, e) from None


def _unreachable(source: Source, error: Exception) -> PlanError:
    pass_on(error)
    known = hub.refusal(error)
    here = "" if source.data or known.there else "; nor is it a directory here"  # a data set's name says that it is the hub's
    return PlanError(f"source: {known.what}{here} (got {source.name!r}); {known.advice}, or give {LOCAL}")
