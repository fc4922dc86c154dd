"""HunyuanVideo 1.5 called as other pipelines are: with its guidance, the length of its prompts and the end of a step."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import diffusers

Plain: Any = diffusers.HunyuanVideo15Pipeline
GUIDANCE = 6.0
"""Of the guider that the model comes with (diffusers' scripts/convert_hunyuan_video1_5_to_diffusers.py)."""


class HunyuanVideo15Pipeline(Plain):  # type: ignore[misc]
    """diffusers' pipeline is guided by its guider as that is set, pads prompts to lengths of its own, and tells nobody when a
    step has ended."""

    guider: Any
    tokenizer_max_length: int
    _callback_tensor_inputs: tuple[str, ...] = ()
    _ended: Callable[..., Any] | None = None

    def __call__(
        self,
        *args: Any,
        guidance_scale: float | None = None,
        max_sequence_length: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """A scale of 1 or less guides not; None leaves the guider as it is."""
        guider, length = self.guider, self.tokenizer_max_length
        self.vae.use_slicing = True  # attention of diffusers' VAE takes the mask of one video alone
        if guidance_scale is not None:
            self.guider = guider.new(guidance_scale=guidance_scale, enabled=guidance_scale > 1)
        self.tokenizer_max_length = max_sequence_length or length
        self._ended = callback_on_step_end
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self.guider, self.tokenizer_max_length, self._ended = guider, length, None

    def encode_prompt(self, prompt: Any = None, *args: Any, max_sequence_length: int | None = None, **kwargs: Any) -> Any:
        """diffusers' needs to be told the number of prompts."""
        length = self.tokenizer_max_length
        self.tokenizer_max_length = max_sequence_length or length
        if prompt is not None:
            kwargs["batch_size"] = 1 if isinstance(prompt, str) else len(prompt)
        try:
            prompt_embeds, prompt_embeds_mask, prompt_embeds_2, prompt_embeds_mask_2 = super().encode_prompt(
                prompt, *args, **kwargs
            )
        finally:
            self.tokenizer_max_length = length
        return prompt_embeds, prompt_embeds_mask, prompt_embeds_2, prompt_embeds_mask_2

    def progress_bar(self, *args: Any, **kwargs: Any) -> Any:
        """It is moved on at the end of each step."""
        bar = super().progress_bar(*args, **kwargs)
        moved, told = bar.update, iter(range(self._num_timesteps))

        def update(n: float = 1) -> Any:
            if self._ended:
                self._ended(self, next(told), self._current_timestep, {})
            return moved(n)

        bar.update = update
        return bar


def _signed() -> Any:
    own = signature(Plain.__call__)
    more = {"guidance_scale": GUIDANCE, "max_sequence_length": 1000, "callback_on_step_end": None}
    added = [Parameter(name, Parameter.KEYWORD_ONLY, default=default) for name, default in more.items()]
    return own.replace(parameters=[*own.parameters.values(), *added])


HunyuanVideo15Pipeline.__call__.__signature__ = _signed()  # type: ignore[attr-defined]
