"""`images.json`: what was drawn of each prompt, and by what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffopt.files.cache_summary import CacheSummary
from diffopt.files.json_file import JsonFile, later


@dataclass(frozen=True)
class VideoFiles:
    frames: Sequence[str]
    """Those that are judged, in order."""
    plays: str
    """All frames in one, for people."""


@dataclass(frozen=True)
class Drawn:
    """A picture, or a video: then `file` are four frames that stand for it."""

    file: str
    prompt: str
    seed: int
    frames: Sequence[str] | None = None
    plays: str | None = None
    given: Mapping[str, str] | None = None
    """The pictures of its prompt by role, as the model was given them."""

    @property
    def judged(self) -> Sequence[str]:
        """Its frames, or the one picture."""
        return [self.file] if self.frames is None else self.frames


@dataclass(frozen=True, kw_only=True)
class ImagesFile(JsonFile):
    NAME = "images.json"

    runtime: str | None = later(None)
    format: str | None = later(None)
    """None for full precision."""
    simulated: bool | None = None
    """Whether the runtime has no kernels for the format; None of the reference."""
    cache: CacheSummary | None = None
    steps: int | None = None
    """Of a further candidate with fewer denoising steps."""
    arithmetic: float | None = None
    """And their share of the arithmetic of all steps."""
    images: tuple[Drawn, ...] = later(())
