"""A family as data: what was found of a pipeline that has no family file, or what a user has written of one."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class Found:
    """`diffopt inspect` prints it, and `found:` of a model option is it. Fields that Family has too mean the same there."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    pipeline: str
    backbone_class: str
    backbones: tuple[str, ...]
    blocks: tuple[str, ...]
    keep: tuple[str, ...]
    size_step: int
    arguments: dict[str, str]
    """Arguments of a call of the pipeline, each with the field of the group `model` that it is given, or with arithmetic of
    the size (diffopt/models/extent.py)."""
    returns: tuple[str | None, ...]
    """Arguments of a call that stand for its texts, in the order in which `encode_prompt` gives them; null is left out."""
    texts: dict[str, Any]
    """Their shapes (diffopt/models/template.py), without the negative ones."""
    inputs: dict[str, Any] | None
    """What a backbone call is given, in the same form; null where that cannot be written down, so that no graph can be made."""
    ends: int = 0
    fixed: dict[str, Any] = field(default_factory=dict)
    """Further arguments of a call, with their values."""
    tokens: int | None = None
    """Tokens of a prompt where `model.max_sequence_length` is null."""
    frame_step: int | None = None
    frame_rate: int = 25
    guidance: Literal["none", "batched", "separate"] = "none"
    nested: dict[str, str] = field(default_factory=dict)
    several: tuple[str, ...] = ()
    pictures: dict[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    convolutions: bool = False
    attention: bool = False
    lora: bool = False
    block_cache: bool = False
    cross_attention: bool = False
    cached: tuple[str, ...] = ()
    cached_reuse: Literal["output", "residual"] = "output"
    conditions: dict[str, str] | None = None
    """Backbone inputs, each with the text that it is: what training gives. Null where it is not known how to train."""
    noisy: str = "hidden_states"
    clock: float = 1000.0
    density: Literal["logit_normal", "uniform"] = "uniform"
    timed: bool = False
    calls: int = 1
    """Backbone calls per denoising step without guidance."""
    unreached: tuple[str, ...] = ()
    """Globs over layers within the blocks that no call comes to, since its pipeline never fills what leads there; kept too."""
    unfilled: tuple[str, ...] = ()
    """Inputs of the backbone that its pipeline never fills, where layers are that no call comes to."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Of what it cannot do, `train` or `export`, why."""

    @property
    def waiting(self) -> str | None:
        """For people, which inputs its pipeline never fills, where that is not the same as having none."""
        if not self.unfilled:
            return None
        return f"{', '.join(self.unfilled)}: never filled by its pipeline, and layers that no call comes to may wait for that"
