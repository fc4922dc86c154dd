"""The family that a found description (diffopt/files/found.py) stands for, with the interface of the written ones."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from diffopt.errors import PlanError
from diffopt.files.found import Found
from diffopt.models.extent import evaluated
from diffopt.models.family import Family, Json, Size, paired, present
from diffopt.models.template import batched, made, shape_of

if TYPE_CHECKING:
    import torch

FIELDS = ("height", "width", "frames", "guidance_scale")
"""Fields of the group `model` that are given to a call as they are; the others are for the texts."""
MENDED = {
    "Cosmos2_5_PredictBasePipeline": "cosmos_pipeline",
    "HunyuanVideo15Pipeline": "hunyuan_video15_pipeline",
    "LTX2Pipeline": "ltx2_pipeline",
    "WanImageToVideoPipeline": "wan_i2v_pipeline",
}
"""Pipelines of which diffusers' own does not do what is asked of it here, and the module here with one that does."""
READ = frozenset({"guidance_scale", "negative_prompt", "max_sequence_length"})
OWN = {"arguments", "inputs", "conditions", "frame_rate"}
"""Functions of a Family, of what is data here."""
SAME = [f.name for f in fields(Found) if f.name in {x.name for x in fields(Family)} - OWN]


def family_of(found: Found) -> Family:
    """Its name is that of the pipeline's class."""
    made_of = _Functions(found)
    return Family(
        name=found.pipeline,
        asks=True,
        reads=READ & {*found.arguments.values()},
        unbatched=tuple(
            n for n, x in (found.inputs or {}).items() if isinstance(x, Mapping) and "shape" in x and not batched(x)
        ),
        arguments=made_of.arguments,
        embed=made_of.embed,
        embeddings=made_of.embeddings,
        inputs=made_of.inputs,
        ours=MENDED.get(found.pipeline, ""),
        frame_rate=lambda _vae: found.frame_rate,
        conditions=None if found.conditions is None else made_of.conditions,
        **{n: getattr(found, n) for n in SAME},
    )


@dataclass(frozen=True)
class _Functions:
    """Of a family; `model` is an object with the fields of the group."""

    found: Found

    def arguments(self, model: Any) -> dict[str, Any]:
        size = Size(1, model.height, model.width, 0, model.frames or 1)
        takes = {n: getattr(model, f) for n, f in self.found.arguments.items() if f in FIELDS}
        takes |= {n: evaluated(f, size) for n, f in self.found.arguments.items() if not f.isidentifier()}
        return present(**takes) | self.found.fixed

    def embed(self, pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
        from diffopt.models.prompt_encoding import encoded

        return encoded(pipe, prompts, self.found.returns, self._guided(model), model)

    def embeddings(self, config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
        tokens = model.max_sequence_length or self.found.tokens or 0
        size = Size(prompts, 1, 1, tokens)  # what stands for a prompt follows from it alone (finding/texts.py)
        return paired({n: shape_of(x, size) for n, x in self.found.texts.items()}, self._guided(model))

    def inputs(self, backbone: Any, vae: Json, size: Size) -> dict[str, Any]:
        found = self.found
        if found.inputs is None:
            why = found.reasons.get("export", "they are not known")
            raise PlanError(f"export: the inputs of a {found.backbone_class} cannot be written down (got {why}); drop export")
        own = size if size.text else Size(size.batch, size.height, size.width, found.tokens or 0, size.frames)
        return {n: made(x, own, backbone.dtype) for n, x in found.inputs.items()}

    def conditions(self, texts: "Mapping[str, torch.Tensor]", noisy: "torch.Tensor") -> "dict[str, torch.Tensor]":
        assert self.found.conditions is not None
        return {name: texts[text] for name, text in self.found.conditions.items() if text in texts}

    def _guided(self, model: Any) -> bool:
        return self.found.guidance != "none" and model.guidance_scale > 1


def _unknown(*_: Any) -> Any:
    raise PlanError("model.family: it was not found yet what it is (got auto); run load, or give model.found")


AUTO = Family(
    name="auto",
    pipeline="",
    backbone_class="",
    blocks=(),
    keep=(),
    size_step=1,
    convolutions=True,
    cached=("*",),
    arguments=_unknown,
    embed=_unknown,
    embeddings=_unknown,
    inputs=_unknown,
    conditions=_unknown,
)
"""Stands for a family before `load` has found it. It refuses nothing that the found one may allow."""
