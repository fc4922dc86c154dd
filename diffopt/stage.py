"""What a stage is: a function whose signature declares what it reads, takes and makes."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from diffopt.artifact import Artifact
from diffopt.errors import PlanError
from diffopt.groups import PICKS
from diffopt.machine import installation
from diffopt.machine.progress import bar
from diffopt.registry import described, loaded
from diffopt.store.source import Source
from diffopt.view import Choices, View

BASELINE: Final = "baseline"
"""`Annotated[OnnxGraph | None, BASELINE]`: the same kind, made from the same model in full precision."""
COMPARED: Final = "compared"
"""`Annotated[tuple[Metrics, ...], COMPARED]`: one of each further candidate that `eval.compare` names, in its order."""
MAIN: Final = "main"
"""`Annotated[Images, MAIN]`: of the main candidate, in the step of a further one too."""

Whose = Literal["candidate", "baseline", "compared", "main"]


@dataclass(frozen=True)
class Under:
    """`Annotated[CalibStats | None, Under(test)]`: an input that is taken, and then needed, under choices that pass `test`,
    or a view that is read."""

    test: Callable[[Choices], bool]
    silent: bool = False
    """Not taken, it is left out of the identity: for what a stage got when it had artifacts in stores already."""


@dataclass(frozen=True)
class Context:
    """Where and how a stage runs. Nothing in it is part of a fingerprint."""

    out: Path
    """The empty directory that becomes the artifact."""
    digest: Callable[[Source], str]
    """The digest of a source, as in fingerprints."""
    locate: Callable[[str], Path]
    """The directory of a source, by its digest."""
    device: str = "cpu"
    title: str = ""
    held: "Held" = field(default_factory=lambda: Held())
    kept: Path | None = None
    """A directory, perhaps not there yet, that outlives a killed run: the next one of the same step finds it."""
    compiled: Path | None = None
    """A directory, perhaps not there yet, for what torch.compile makes: it may go at any time."""
    timings: Path | None = None
    """The same for what TensorRT's builder learns of the speed of kernels."""
    along: Mapping[str, Path] = field(default_factory=dict)
    """As `out`, of the stages that this one names by `along` and that are to run too: artifacts of the same pass."""
    lean: bool = False
    """The GPU's memory was full: keep there what a call needs alone. It changes no result."""

    def progress(self, total: int) -> AbstractContextManager[Callable[[], None]]:
        """A bar of `total` ticks on a terminal; yields the function that ticks."""
        return bar(self.title, total)


class Held:
    """What a stage has opened and its next step needs again: a model, for the next chunk of prompts or job of a sweep."""

    def __init__(self) -> None:
        self.owner = ""
        """The stage."""
        self._key: Any = None
        self._value: Any = None

    def get(self, key: Any, open: Callable[[], Any]) -> Any:
        """What was opened under `key`, or opened now; whatever is held under another key is let go before."""
        if self._key != key or self._value is None:
            self.drop()
            self._key, self._value = key, open()
        return self._value

    def hand_to(self, owner: str) -> bool:
        """Whether another stage held it, so that it was let go."""
        if owner == self.owner:
            return False
        self.drop()
        self.owner = owner
        return True

    def drop(self) -> None:
        self._key = self._value = None


@dataclass(frozen=True)
class Param:
    """One parameter of a stage after `ctx`."""

    name: str
    role: Literal["view", "artifact", "seed"]
    types: tuple[type, ...] = ()
    """The view, or the kinds of artifact; several kinds mean the one that `eval.runtime` runs."""
    optional: bool = False
    many: bool = False
    """All artifacts of the kind, in order."""
    whose: Whose = "candidate"
    under: Under | None = None


@dataclass(frozen=True)
class Stage:
    name: str
    run: Callable[..., None]
    version: int
    when: str | None
    probes: tuple[str, ...]
    params: tuple[Param, ...] = field(repr=False)
    makes: type[Artifact]
    only: Callable[[Choices], bool] | None = None
    """Under choices that do not pass it the stage is as if it were not installed."""
    asked: Callable[[Choices], bool] | None = None
    """Under choices that pass it, what the stage makes is wanted for its own sake."""
    along: tuple[str, ...] = ()
    """Stages with the same views and inputs, whose artifacts this one writes too where they are to run."""

    def called(self, choices: Choices) -> bool:
        """Whether its group, if it has one, is chosen."""
        return self.when is None or choices.of(self.when) is not None

    def there(self, choices: Choices) -> bool:
        return self.only is None or self.only(choices)

    def wanted(self, choices: Choices) -> bool:
        """Whether a plan ends in it, whatever else does."""
        return self.asked is not None and self.there(choices) and self.called(choices) and self.asked(choices)


def stage(
    *,
    version: int,
    when: str | None = None,
    probes: tuple[str, ...] = (),
    only: Callable[[Choices], bool] | None = None,
    asked: Callable[[Choices], bool] | None = None,
    along: tuple[str, ...] = (),
) -> Callable[[Callable[..., Any]], Stage]:
    """Make a stage of a function `(ctx, views..., artifacts..., seed) -> kind`, which writes its artifact to `ctx.out`.

    After `ctx`, a parameter annotated with a `View` reads the config group of that name, one annotated with an
    `Artifact` is an input, and `seed: int` is the run's seed; the return annotation is the kind that is made.
    `when` names the group whose choice calls for the stage; under choices that do not pass `only` it is not there at all.
    A stage runs where another one takes what it makes, or an option wants it; under choices that pass `asked` it runs for
    its own sake, as one of a new kind must that no other stage takes. `along` names later stages that read the same, and
    whose artifacts this one writes to the directories of `ctx.along`.
    `probes` names what of the environment decides the result. Raise `version` when the code changes what it makes.
    """

    def wrap(run: Callable[..., Any]) -> Stage:
        hints = get_type_hints(run, include_extras=True)
        makes = hints.pop("return", None)
        if not (isinstance(makes, type) and issubclass(makes, Artifact)):
            raise TypeError(f"{run.__qualname__}: returns {makes!r}, which is no kind of artifact")
        names = list(inspect.signature(run).parameters)[1:]
        if bare := [n for n in names if n not in hints]:
            raise TypeError(f"{run.__qualname__}: {bare[0]} has no annotation, which would say what it is")
        params = tuple(_param(run.__qualname__, name, hints[name]) for name in names)
        if wrong := [n for n in (when, *(p.name for p in params if p.role == "view")) if n is not None and n not in PICKS]:
            raise TypeError(f"{run.__qualname__}: {wrong[0]} is no config group; there are {', '.join(sorted(PICKS))}")
        return Stage(run.__name__, run, version, when, probes, params, makes, only, asked, along)

    return wrap


def _param(where: str, name: str, hint: Any) -> Param:
    if name == "seed" and hint is int:
        return Param(name, "seed")
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    if notes:
        hint = get_args(hint)[0]
    kinds: tuple[Whose, ...] = (BASELINE, COMPARED, MAIN)
    whose: Whose = next((k for k in kinds if k in notes), "candidate")
    under = next((n for n in notes if isinstance(n, Under)), None)
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    types, optional = tuple(t for t in parts if t is not NoneType), NoneType in parts
    if len(types) == 1 and get_origin(types[0]) is tuple:
        return Param(name, "artifact", (get_args(types[0])[0],), optional, True, whose, under)
    if all(isinstance(t, type) and issubclass(t, Artifact) for t in types):
        return Param(name, "artifact", types, optional, False, whose, under)
    if len(types) == 1 and isinstance(types[0], type) and issubclass(types[0], View):
        return Param(name, "view", types, optional, under=under)
    raise TypeError(f"{where}: {name}: {hint!r} is neither a view, nor a kind of artifact, nor `seed: int`")


def stages() -> list[Stage]:
    """Every installed stage, in the order of their places: entry points `PLACE_NAME` of the group `diffopt.stages`.

    A third-party stage names itself `45_mystage` to come between `40_...` and `50_...`; where two stages make the
    same kind, the later one's is taken. Those of one place and name are in the order of what they point at.

    Raises PlanError where diffopt is not installed, or as another version, and, naming the package, for what is no stage.
    """
    return [made for _, made in installed()]


def installed() -> list[tuple[EntryPoint, Stage]]:
    """The same with the entry point of each, which names its package."""

    def place(point: EntryPoint) -> tuple[int, str, str]:
        number, _, name = point.name.partition("_")
        if not number.isdigit() or not name:
            raise PlanError(
                f"stages: {described(point)} is not called PLACE_NAME (got {point.name}); mend or uninstall that package"
            )
        return int(number), name, point.value

    points = sorted(set(entry_points(group=installation.STAGES)), key=place)
    if flaw := installation.flaw(points):
        raise PlanError(flaw)
    found: dict[str, tuple[EntryPoint, Stage]] = {}
    for point in points:
        made = loaded(point, Stage, PlanError, "stages")
        if made.name in found:
            both = f"{described(found[made.name][0])} and {described(point)}"
            raise PlanError(f"stages: two are called {made.name} (got {both}); rename one, or uninstall its package")
        found[made.name] = point, made
    return [*found.values()]
