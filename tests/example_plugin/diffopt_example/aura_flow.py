"""AuraFlow."""

from typing import Any

from diffopt.models import Family
from diffopt.models.family import paired, present


def arguments(model: Any) -> dict[str, Any]:
    return {"height": model.height, "width": model.width, "guidance_scale": model.guidance_scale}


def embed(pipe: Any, prompts: list[str], model: Any) -> dict[str, Any]:
    given = {"negative_prompt": model.negative_prompt, "max_sequence_length": model.max_sequence_length}
    states, mask, negative, none = pipe.encode_prompt(prompts, do_classifier_free_guidance=FAMILY.guided(model), **given)
    found = {"prompt_embeds": states, "prompt_attention_mask": mask}
    return found | present(negative_prompt_embeds=negative, negative_prompt_attention_mask=none)


def embeddings(config: Any, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    tokens, width = model.max_sequence_length, config["joint_attention_dim"]
    shapes = {"prompt_embeds": (prompts, tokens, width), "prompt_attention_mask": (prompts, tokens * width)}
    return paired(shapes, FAMILY.guided(model))


def inputs(backbone: Any, vae: Any, size: Any) -> dict[str, Any]:
    import torch

    scale, config, kind = 2 ** (len(vae["block_out_channels"]) - 1), backbone.config, {"dtype": backbone.dtype}
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height // scale, size.width // scale, **kind),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.joint_attention_dim, **kind),
        "timestep": torch.full((size.batch,), 0.5, **kind),
    }


BLOCKS = ("joint_transformer_blocks", "single_transformer_blocks")
KEEP = ("pos_embed", "context_embedder", "time_step_proj", "norm_out", "proj_out")
FUNCTIONS = {"arguments": arguments, "embed": embed, "embeddings": embeddings, "inputs": inputs}
FAMILY = Family("aura_flow", "AuraFlowPipeline", "AuraFlowTransformer2DModel", BLOCKS, KEEP, size_step=16, **FUNCTIONS)
