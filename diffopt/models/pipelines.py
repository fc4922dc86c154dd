"""Parts of pipelines, by what a model_index.json says of them. Imports diffusers when asked."""

from typing import Any

GUIDER = "guider"
"""How pipelines call the part that guides, where it is one: settings and a rule, no model."""


def part_class(library: str, name: str) -> Any:
    """Of diffusers: some are within the pipelines; None for what it has not."""
    import diffusers

    found = getattr(diffusers, name, None)
    return found or getattr(getattr(diffusers.pipelines, library, None), name, None)
