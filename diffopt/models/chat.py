"""Prompts within the template of a chat, as pipelines whose text encoder is a language model give them to it."""

from typing import Any


def thoughtless(tokenizer: Any, prompt: str) -> int:
    """Tokens of what FLUX.2 klein makes of a prompt: a user's message to a model that does not think."""
    return _tokens(tokenizer, prompt, False)


def thinking(tokenizer: Any, prompt: str) -> int:
    """Tokens of what Z-Image makes of a prompt: a user's message to a model that thinks."""
    return _tokens(tokenizer, prompt, True)


def instructed(processor: Any, prompt: str) -> int:
    """Tokens of what FLUX.2 makes of a prompt: a user's message after the system's."""
    from diffusers.pipelines.flux2.pipeline_flux2 import format_input

    text = processor.apply_chat_template(format_input([prompt]), add_generation_prompt=False, tokenize=False)[0]
    return len(getattr(processor, "tokenizer", processor)(text, add_special_tokens=False, verbose=False).input_ids)


def _tokens(tokenizer: Any, prompt: str, thinks: bool) -> int:
    said = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True, enable_thinking=thinks)
    return len(tokenizer(text, verbose=False).input_ids)
