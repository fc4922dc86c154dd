"""What `eval.compare` can name: further candidates of a run, each by how its choices differ from the main one's.

Importing this imports no library that computes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from diffopt.files.images import ImagesFile
from diffopt.groups.choices import Choices


@dataclass(frozen=True)
class Alternative:
    name: str
    about: str
    """What it is, for the plan."""
    ours: str
    """What won or lost where the main candidate did beside it."""
    unfit: Callable[[Choices], str | None]
    """Why there is no such thing beside these choices; None where there is."""
    change: Callable[[Choices], Choices]
    title: Callable[[ImagesFile], str]
    """What it is called, by the images.json of its pictures."""


def choices(name: str, main: Choices) -> Choices:
    """Of this further candidate; those of a main one are `main`."""
    return replace(ALTERNATIVES[name].change(main), compared=name, main=main)


def _untrained(choices: Choices) -> str | None:
    return None if choices.train else "nothing is trained, so the checkpoint before training is the candidate itself"


def _cacheless(choices: Choices) -> str | None:
    return None if choices.cache else "there is no cache, whose savings it would have by other means"


def _alone(choices: Choices) -> str | None:
    if choices.cache is None:
        return "there is no cache, so that is the candidate itself"
    plain = choices.format is None and choices.eval is not None and choices.eval.runtime in ("torch", "native")
    return "without a format that is the reference itself" if plain else None


def _real(choices: Choices) -> str | None:
    if choices.format is None:
        return "there is no format, so nothing is simulated"
    plain = choices.eval is None or choices.eval.runtime == "torch"
    return "torch simulates already, so that is the candidate itself" if plain else None


def _by_torch(choices: Choices) -> Choices:
    assert choices.eval is not None
    return replace(choices, eval=choices.eval.model_copy(update={"runtime": "torch"}))


def _fewer(images: ImagesFile) -> str:
    many = images.steps
    return f"{many} step{'' if many == 1 else 's'} without a cache, {images.arithmetic:.1%} of the arithmetic"


ALTERNATIVES = {
    r.name: r
    for r in (
        Alternative(
            "ptq",
            "the checkpoint before it was trained",
            "training",
            _untrained,
            lambda c: replace(c, train=None),
            lambda images: "the checkpoint before training",
        ),
        Alternative(
            "fewer_steps",
            "no cache, and as few steps as reach the arithmetic of the cached run",
            "the cache",
            _cacheless,
            lambda c: replace(c, cache=None),
            _fewer,
        ),
        Alternative(
            "uncached",
            "the same without the cache",
            "the cache",
            _alone,
            lambda c: replace(c, cache=None),
            lambda images: "all steps without a cache",
        ),
        Alternative(
            "simulated",
            "the same checkpoint by the torch runtime, which simulates it",
            "the real kernels",
            _real,
            _by_torch,
            lambda images: "the same checkpoint, simulated by torch",
        ),
    )
}
