"""What observing costs: calls of a plain backbone and of an observed one in turn, as a ratio.

python tests/overhead.py          # blocks of FLUX.1-dev's and SDXL's width, fewer and on fewer tokens, on a CPU
"""

import copy
import statistics
import time
from typing import Any

import torch

from diffopt.observation import observed

Inputs = dict[str, Any]


def flux(device: str, dtype: torch.dtype, double: int, single: int, tokens: int, text: int) -> tuple[torch.nn.Module, Inputs]:
    """FLUX.1-dev's transformer with so many blocks, random weights, and a call of batch 1."""
    from diffusers import FluxTransformer2DModel

    with torch.device(device):
        model = FluxTransformer2DModel(num_layers=double, num_single_layers=single, guidance_embeds=True).to(dtype).eval()
        inputs = {
            "hidden_states": torch.randn(1, tokens, 64, dtype=dtype),
            "encoder_hidden_states": torch.randn(1, text, 4096, dtype=dtype),
            "pooled_projections": torch.randn(1, 768, dtype=dtype),
            "timestep": torch.full((1,), 0.5, dtype=dtype),
            "guidance": torch.full((1,), 3.5),
            "img_ids": torch.zeros(tokens, 3, dtype=dtype),
            "txt_ids": torch.zeros(text, 3, dtype=dtype),
        }
    return model, inputs


def sdxl(device: str, dtype: torch.dtype, side: int, depth: int) -> tuple[torch.nn.Module, Inputs]:
    """SDXL's UNet, random weights, and a call for one picture with guidance; `side` in latent pixels, `depth` in
    transformer layers of the innermost blocks, 10 in SDXL."""
    from diffusers import UNet2DConditionModel

    with torch.device(device):
        model = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, depth),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            sample_size=128,
        )
        model = model.to(dtype).eval()
        inputs = {
            "sample": torch.randn(2, 4, side, side, dtype=dtype),
            "timestep": torch.tensor(500),
            "encoder_hidden_states": torch.randn(2, 77, 2048, dtype=dtype),
            "added_cond_kwargs": {"text_embeds": torch.randn(2, 1280, dtype=dtype), "time_ids": torch.ones(2, 6, dtype=dtype)},
        }
    return model, inputs


def ratio(model: torch.nn.Module, inputs: Inputs, pairs: int, warm: int = 2) -> tuple[float, float, float]:
    """Seconds of a plain call and of an observed one, medians, and the median of the pairs' ratios."""
    weights = {id(x): x for x in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, weights)  # of the same weights: observing leaves its mark on the attention modules

    def seconds(which: torch.nn.Module) -> float:
        _wait(inputs)
        started = time.perf_counter()
        which(**inputs)
        _wait(inputs)
        return time.perf_counter() - started

    with torch.inference_mode(), observed(twin):
        timed = [(seconds(model), seconds(twin)) for _ in range(warm + pairs)][warm:]
    plain, watched = zip(*timed, strict=True)
    return statistics.median(plain), statistics.median(watched), statistics.median(w / p for p, w in timed)


def _wait(inputs: Inputs) -> None:
    if any(isinstance(x, torch.Tensor) and x.is_cuda for x in inputs.values()):
        torch.cuda.synchronize()


if __name__ == "__main__":
    for name, (model, inputs) in {
        "flux": flux("cpu", torch.float32, 1, 2, 512, 64),
        "sdxl": sdxl("cpu", torch.float32, 16, 1),
    }.items():
        print(name, "plain {:.3f} s, observed {:.3f} s, ratio {:.3f}".format(*ratio(model, inputs, 7)), flush=True)
