"""What a metric is, and what it scores with. Importing this imports no library that computes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffopt.errors import MetricError
from diffopt.files.interval import Interval

if TYPE_CHECKING:
    import numpy as np

    from diffopt.metrics.encoder import Encoder

SOURCES = {
    "clip": "a CLIP model: a directory or hub id that transformers' CLIPModel or open_clip loads",
    "imagereward": "the directory of ImageReward.pt and med_config.json, which https://huggingface.co/THUDM/ImageReward has",
    "features": "an image model whose features are compared: a directory or hub id that transformers' AutoModel loads",
}
"""What metrics need beside pictures: fields of the group `eval`, and flags of `diffopt eval`."""


def _as_they_are(pictures: "list[np.ndarray]") -> "list[np.ndarray]":
    return pictures


class Scorer(ABC):
    """A metric with its weights in memory."""

    prepare: "Callable[[list[np.ndarray]], Iterable[Any]]" = staticmethod(_as_they_are)
    """What of each of a few pictures, uint8 [height, width, 3], the model is given, in order. Called in the threads that read
    pictures, and once for all scorers that have the same function."""

    @abstractmethod
    def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> "Sequence[float] | np.ndarray":
        """A value per prepared picture, [n]; of a metric that judges sets, a row of features per picture, [n, d].

        `references` are the prepared pictures of the same prompts in full precision, for a metric that judges pairs.
        """


class SetScorer(Scorer):
    """Of a metric that judges whole sets."""

    @abstractmethod
    def distance(self, ours: "np.ndarray", theirs: "np.ndarray") -> Interval:
        """Of two sets' features [n, d]. The interval is by bootstrap."""


@dataclass
class Weights:
    """Where the models that score are, by the names of SOURCES; each is loaded once, however many metrics use it."""

    directories: dict[str, Path]
    device: str = "cpu"
    _loaded: dict[tuple[str, Path], Any] = field(default_factory=dict)

    def directory(self, name: str) -> Path:
        """Raises MetricError where it was not given."""
        if name not in self.directories:
            raise MetricError(f"{name}: is not given (got None); give {SOURCES[name]}")
        return self.directories[name]

    def encoder(self, name: str) -> "Encoder":
        """The model of `name` as an encoder of pictures, and of texts where it is a CLIP."""
        from diffopt.metrics.encoder import load

        return self.load("encoder", self.directory(name), lambda path: load(path, self.device))  # type: ignore[no-any-return]

    def load(self, kind: str, path: Path, open: Callable[[Path], Any]) -> Any:
        if (kind, path) not in self._loaded:
            self._loaded[kind, path] = open(path)
        return self._loaded[kind, path]


@dataclass(frozen=True)
class Metric:
    """One metric. A package of its own adds one by an entry point of the group `diffopt.metrics`: `name = module:METRIC`."""

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    judges: Literal["picture", "pair", "set"]
    """One picture, given for reference and candidate alike; a picture beside its reference; or two sets of pictures."""
    open: Callable[[Weights], Scorer]
    """Raises MetricError for weights that cannot be loaded."""
    needs: tuple[str, ...] = ()
    """Names of SOURCES."""
    of_text: bool = False
    """Its score compares with the prompt's text."""
    of_video: bool = False
    """Its scorer is given videos, a list of prepared frames each. Without it each frame is scored as a picture, and a video
    has the mean of its frames."""
    smallest: int = 1
    """Pixels that a picture's sides have at least."""

    @property
    def paired(self) -> bool:
        return self.judges == "pair"
