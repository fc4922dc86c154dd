"""What is found in every backbone class of diffusers at its default size; run, it writes the manual's table."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import diffusers
import torch
from diffusers import ModelMixin
from diffusers.models import transformers, unets

from diffopt.errors import PlanError
from diffopt.finding import structure
from diffopt.quantization.layers import layers_of, taken

PAGE = Path(__file__).parent.parent / "diffopt" / "finding" / "README.md"
BEGIN, END = "<!-- survey: written by tests/survey.py -->\n", "<!-- survey ends -->"


def classes() -> dict[str, type[torch.nn.Module]]:
    """Of diffusers' transformers and UNets."""
    found = {}
    for package in (transformers, unets):
        for module in iter_modules(package.__path__):
            own = import_module(f"{package.__name__}.{module.name}")
            for name, cls in vars(own).items():
                if inspect.isclass(cls) and issubclass(cls, ModelMixin) and cls.__module__ == own.__name__:
                    found[name] = cls
    return dict(sorted(found.items()))


def row(cls: type[torch.nn.Module]) -> str:
    """Its blocks and how many of its linear layers are quantized; or why that is not known."""
    try:
        with torch.device("meta"):
            backbone = cls()
    except (TypeError, ValueError) as e:  # a config that has no defaults for what its class must have
        reason = str(e).splitlines()[0].rstrip(".").replace("|", "/")
        return f"its config has no whole defaults: {reason} | | "
    try:
        blocks = structure.blocks_of(backbone)
    except PlanError:
        return "has no repeated blocks | | "
    layers = layers_of(backbone)
    kept = structure.kept_of(backbone, blocks)
    quantized, there = len(taken(layers, kept)), len(taken(layers, []))
    lists = ", ".join(f"`{n}` {len(getattr(backbone, n))}" for n in blocks)
    return f"{lists} | {quantized} of {there} | {'yes' if structure.quantizable(backbone, blocks) else 'no'}"


def table() -> Iterator[str]:
    found = classes()
    yield f"| class of diffusers {diffusers.__version__} | blocks | linear layers quantized | attention |"
    yield "|---|---|---|---|"
    yield from (f"| {name.removesuffix('Model')} | {row(cls)} |" for name, cls in found.items())


def written() -> str:
    """The page with the table as it is now."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}{chr(10).join(table())}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written())
