"""Cosmos Predict 2.5 with its guardrail made where it is needed: where prompts are encoded and where videos are decoded."""

from functools import cache, wraps
from typing import Any

import diffusers

from diffopt.errors import GateError, PlanError

Plain: Any = diffusers.Cosmos2_5_PredictBasePipeline


class Nothing:
    """In the guardrail's place while nothing is shown: embeddings are denoised, whose prompts were checked, and nothing is
    decoded."""

    def to(self, *_: Any, **__: Any) -> None:
        """There is nothing to move."""


class Cosmos2_5_PredictBasePipeline(Plain):  # type: ignore[misc]
    """diffusers' pipeline wants a guardrail as soon as it is made, and checks no prompts that it gets as embeddings. This one
    checks them where it makes embeddings of them, and every video that it decodes."""

    guarded = False
    """Whether its weights are NVIDIA's, whose licence ends for who goes without the guardrail. Random ones need none."""

    @wraps(Plain.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("safety_checker") is None:
            kwargs["safety_checker"] = Nothing()
        super().__init__(*args, **kwargs)

    @wraps(Plain.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = self.safety_checker
        if self.guarded and (kwargs.get("prompt") is not None or kwargs.get("output_type") != "latent"):
            object.__setattr__(self, "safety_checker", guardrail())
        try:
            return super().__call__(*args, **kwargs)
        finally:
            object.__setattr__(self, "safety_checker", own)

    def encode_prompt(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        if self.guarded and prompt is not None:
            for text in [prompt] if isinstance(prompt, str) else prompt:
                if not guardrail().check_text_safety(text):
                    raise GateError(f"prompts: Cosmos' guardrail refuses one (got {text!r}); ask for something else")
        prompt_embeds, negative_prompt_embeds = super().encode_prompt(prompt, *args, **kwargs)
        return prompt_embeds, negative_prompt_embeds


@cache
def guardrail() -> Any:
    """NVIDIA's, whose models it downloads. Raises PlanError where its package or they cannot be had."""
    try:
        from cosmos_guardrail import CosmosSafetyChecker

        found = CosmosSafetyChecker()
    except (ImportError, OSError, ValueError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise PlanError(
            f"model: Cosmos is not drawn without its guardrail, which cannot be opened (got {reason}); install it by "
            "`pip install 'diffopt[cosmos]'`, and accept the licence of its models on the hub"
        ) from None
    shown = found.check_video_safety

    def checked(frames: Any) -> Any:
        seen = shown(frames)
        if seen is None:
            raise GateError("Cosmos' guardrail refuses a video that was drawn (got none back); ask for something else")
        return seen

    found.check_video_safety = checked
    return found
