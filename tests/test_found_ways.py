"""What else a recipe may ask of a pipeline that has no family file: other programs' layouts, random weights, an adapter."""

from pathlib import Path

import pytest
import torch
from test_found_matrix import prompts, source, sources, store  # noqa: F401  fixtures
from test_matrix import attempt, calibration, entry
from tiny_unknown import UNKNOWN

NAME = "bria"
WAYS = {
    "huggingface": (["export=huggingface"], "deploy", ""),
    "native": (["export=native"], "pack", ""),
    "comfyui": (["export=comfyui"], None, "export: of auto's layers the names in ComfyUI are not known here"),
    "random": (["model.weights=random", "export=huggingface"], "deploy", ""),
    "random by its configs": (["model.weights=random", "model.architecture=SOURCE", "model.source=???"], "quantize", ""),
    "random without configs": (
        ["model.weights=random", "model.source=org/name"],
        None,
        "model.weights: this model has no architecture to draw them",
    ),
}
"""What is asked, the stage that makes it, or the line that refuses it in the plan."""


@pytest.mark.matrix
@pytest.mark.parametrize("way", WAYS)
def test_each_way_works_or_is_refused_in_the_plan(
    way: str,
    store: Path,  # noqa: F811
    prompts: Path,  # noqa: F811
    sources: dict[str, Path],  # noqa: F811
) -> None:
    picks, stage, line = WAYS[way]
    given = ["model=auto", f"model.source={source(NAME, sources)}", "model.dtype=float32", "format=fp8"]
    given += [f"model.height={UNKNOWN[NAME].side}", f"model.width={UNKNOWN[NAME].side}", "model.long_prompts=cut"]
    given += calibration("fp8", prompts)
    made, said = attempt(store, *given, *(p.replace("SOURCE", str(source(NAME, sources))) for p in picks))
    assert line in said
    assert (made is not None) == (stage is not None), said
    if stage:
        assert made is not None
        assert entry(made, stage)
    else:
        assert made is None


@pytest.mark.matrix
def test_an_adapter_that_its_pipeline_cannot_load_is_refused(store: Path, prompts: Path, sources: dict[str, Path]) -> None:  # noqa: F811
    from safetensors.torch import save_file

    path = store / "adapter.safetensors"
    name, wide = "transformer.transformer_blocks.0.attn.to_q", 64
    save_file({f"{name}.lora_A.weight": torch.randn(4, wide), f"{name}.lora_B.weight": torch.randn(wide, 4)}, path)
    given = ["model=auto", f"model.source={source(NAME, sources)}", "model.dtype=float32", "format=fp8"]
    given += [f"model.height={UNKNOWN[NAME].side}", f"model.width={UNKNOWN[NAME].side}", "model.long_prompts=cut"]
    made, said = attempt(store, *given, f"model.lora=[{{path: {path}, scale: 1.0}}]", *calibration("fp8", prompts))
    assert made is None or not entry(made, "load")
    assert "model.lora: diffusers has no LoRA loader for BriaPipeline (got " in said
