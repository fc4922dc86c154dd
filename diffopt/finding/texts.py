"""What stands for a prompt: the shapes of its embeddings, by the text encoders without their weights."""

from collections.abc import Mapping
from typing import Any

from diffopt.errors import PlanError
from diffopt.finding.recorded import Unfit, template
from diffopt.finding.rehearsal import DTYPE, Rehearsal, said
from diffopt.models.family import Size
from diffopt.pipeline.foreign import config_of

SHORT, LONG = 24, 32
WIDTHS = ("joint_attention_dim", "caption_channels", "text_dim", "cross_attention_dim", "text_embed_dim", "cap_feat_dim")
"""Fields of backbones' configs that give the width of a prompt's embeddings, where there are no text encoders to ask."""
POOLED = ("pooled_projection_dim",)


def text_templates(run: Rehearsal, names: tuple[str | None, ...]) -> tuple[int | None, dict[str, Any]]:
    """Tokens of a prompt where nothing is said, and the template of each embedding."""
    default = run.takes["max_sequence_length"].default if "max_sequence_length" in run.takes else None
    if not any(n.startswith("text_encoder") and n in run.models for n in run.classes):
        return default or 77, _guessed(run, names)
    sizes = [Size(2, 64, 64, SHORT), Size(3, 64, 64, SHORT), Size(2, 64, 64, LONG)]
    try:
        given = [run.texts(names, s.batch, s.text if default else None) for s in sizes]
    except Exception as e:  # another's code
        raise PlanError(
            f"model.source: its encode_prompt did not run on a small prompt (got {said(e)}); "
            "write its family in a file of a package"
        ) from None
    given = [{n: x for n, x in g.items() if not n.startswith("negative_")} for g in given]
    if not all(given):
        raise PlanError(
            f"model.source: its prompts' embeddings are no tensors (got a {run.cls.__name__}, "
            "whose encode_prompt gives lists); write its family in a file of a package"
        )
    try:
        found = {n: template(n, [g[n] for g in given], sizes, DTYPE) for n in given[0]}
    except Unfit as e:
        raise PlanError(f"model.source: its prompts' embeddings cannot be told ahead (got {e}); write its family") from None
    for name, x in found.items():
        x["fill"] = 1 if "mask" in name else "noise"
    if not any("text" in str(x["shape"]) for x in found.values()):
        default = default or _own_length(found)
        _name_text(found)
    return default, found


def _own_length(found: Mapping[str, Any]) -> int:
    return next((x["shape"][1] for x in found.values() if len(x["shape"]) > 1 and isinstance(x["shape"][1], int)), 77)


def _name_text(found: dict[str, Any]) -> None:
    """Encoders that pad to the longest prompt, or always alike: the second axis of the first embedding is the text's."""
    first = next(x for x in found.values() if len(x["shape"]) > 2)
    length = first["shape"][1]
    for x in found.values():
        if len(x["shape"]) > 1 and x["shape"][1] == length and ("mask" in x or len(x["shape"]) != 2 or x["fill"] == 1):
            x["shape"][1] = "text"


def _guessed(run: Rehearsal, names: tuple[str | None, ...]) -> dict[str, Any]:
    config = config_of(run.directory / run.backbones[0] / "config.json")

    def width(fields: tuple[str, ...], name: str) -> int:
        found: int | None = next((config[f] for f in fields if isinstance(config.get(f), int)), None)
        if found is None:
            raise PlanError(
                f"model.architecture: has no text encoders, and its {run.backbones[0]}'s config tells no width of {name} "
                f"(got none of {', '.join(fields)}); give the whole pipeline, or write model.found"
            )
        return found

    found: dict[str, Any] = {}
    for name in (n for n in names if n and not n.startswith("negative_")):
        if "mask" in name:
            found[name] = {"shape": ["batch", "text"], "dtype": "bool", "fill": 1}
        elif "pooled" in name:
            found[name] = {"shape": ["batch", width(POOLED, name)], "dtype": "model", "fill": "noise"}
        else:
            found[name] = {"shape": ["batch", "text", width(WIDTHS, name)], "dtype": "model", "fill": "noise"}
    return found
