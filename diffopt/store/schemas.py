"""The schemas of the JSON that a store keeps about its artifacts. Each is checked here, whoever reads the file."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel, ValidationError
from pydantic_core import from_json

from diffopt.store import files

LONGEST = 300
"""Characters of what a parser says of a file."""


class Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or str(path) != name or "\0" in name:
        raise ValueError("is no path within the artifact")
    return name


Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
Name = Annotated[str, AfterValidator(_inside)]


class Content(Part):
    """Of one file."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Identity(Part):
    """What the name of the artifact is the hash of."""

    stage: str = ""
    config: dict[str, dict[str, Any] | None] = {}
    inputs: dict[str, Fingerprint | list[Fingerprint | None] | None] = {}


class Machine(Part):
    cpu: str | None = None
    cores: int | None = None
    gpus: list[str] = []


class Estimated(Part):
    """What was foretold before it was made."""

    seconds: float | None = Field(default=None, ge=0)
    peak_bytes: dict[str, Annotated[int, Field(ge=0)]] = {}


class Provenance(Part):
    """How it was made."""

    estimated: Estimated = Estimated()
    seconds: float | None = Field(default=None, ge=0)
    peak_bytes: dict[str, Annotated[int, Field(ge=0)]] = {}
    machine: Machine = Machine()


class Record(Part):
    """`record.json` of an artifact."""

    kind: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    identity: Identity
    provenance: Provenance
    files: dict[Name, Content]


class Reference(Part):
    """`roots/NAME.json`: a run, and the kind and fingerprint of each artifact that it refers to."""

    run: str = Field(min_length=1)
    artifacts: list[Annotated[list[str], Field(min_length=2, max_length=2)]]


class Live(Part):
    """`live/HOST-PROCESS.json`: a run that uses the store now."""

    run: str
    process: int
    host: str


Hash = Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]


class Memory(RootModel[dict[str, Hash]]):
    """`sources.json`: by path, size and date the sha256 of a file; by repository and revision the commit of the hub."""


class Sent(RootModel[dict[str, str]]):
    """`.sent.json` in an object storage: the sha256 of what has arrived there, by name."""


def read(path: Path, schema: type[BaseModel]) -> Any:
    """The file's content, plain. Raises OSError, and ValueError with the first thing that is wrong."""
    return parse(files.content(path), schema)


def parse(content: bytes, schema: type[BaseModel]) -> Any:
    """The same of bytes. Raises ValueError."""
    found = from_json(content)  # the parser has a limit of depth, which json's turns into a crash
    try:
        schema.model_validate(found)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(x) for x in first["loc"])
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}"[:LONGEST].lower()) from None
    return found
