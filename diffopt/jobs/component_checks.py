"""What of `format.components` is refused: parts that there are not, that are no text encoders, and what is not installed."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from diffopt import models
from diffopt.errors import suggestion
from diffopt.groups.format import PACKAGES
from diffopt.models.parts import Parts
from diffopt.view import Choices

TEXT = "text_encoder"


def components(choices: Choices, directory: Path | None) -> Iterator[str]:
    """Why they cannot be kept in fewer bits; `directory` is the pipeline's, where it is here."""
    if choices.format is None or choices.model is None:
        return
    wanted = {n: f for n, f in choices.format.components.items() if f}
    needs = {PACKAGES[f]: n for n, f in wanted.items()}
    for package in (p for p in needs if find_spec(p) is None):
        yield (
            f"format.components: the package {package} is not installed (got {needs[package]}); "
            "`pip install 'diffopt[components]'`, or set them to null"
        )
    if wanted and choices.model.weights == "random":
        yield (
            f"format.components: a model with random weights has no text encoders (got {', '.join(wanted)}); "
            "set them to null, or model.weights=pretrained"
        )
        return
    if directory is None:
        return
    parts = Parts(directory, models.of(choices.model), choices.model.variant)
    texts = [n for n in parts.named if TEXT in n and parts.index[n][0] == "transformers"]
    for name, format in choices.format.components.items():
        where = f"format.components.{name}"
        if name not in parts.named:
            yield f"{where}: the pipeline has no such part (got {format}); {suggestion(name, texts)}"
        elif format and name in parts.family.backbones:
            yield f"{where}: is the backbone, which format={choices.format.name} quantizes (got {format}); set it to null"
        elif format and name not in texts:
            reason = (
                "is made of convolutions, of which no library keeps weights alone"
                if name == "vae"
                else "is no model that reads prompts"
            )
            yield f"{where}: {reason} (got {format}); set it to null, or choose of {', '.join(texts) or 'another model'}"
