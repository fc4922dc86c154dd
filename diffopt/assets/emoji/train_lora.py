"""Trains grey-lora.safetensors: the embedded model drawing in grey, from grey copies of its own training pictures.

Run:    python train_lora.py data_small.npz grey-lora.safetensors [STEPS]    # the file that train_emoji.py's `data` writes
Took:   200 steps of 4 pictures on one CPU core
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

HERE = Path(__file__).parent
PICTURES, BATCH, RANK = 128, 4, 4
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_mlp", "proj_out"]


def main(data: str, out: str, steps: int = 200) -> None:
    torch.manual_seed(0)
    pipe = FluxPipeline.from_pretrained(HERE / "emoji-flux", torch_dtype=torch.float32)
    found = np.load(data)
    chosen = np.random.default_rng(0).permutation(len(found["images"]))[:PICTURES]
    pictures = torch.from_numpy(found["images"][chosen]).permute(0, 3, 1, 2).float() / 127.5 - 1
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601 luma
    grey = (pictures * weights).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    with torch.no_grad():
        scale = pipe.vae.config
        latents = torch.cat([pipe.vae.encode(x).latent_dist.mean for x in grey.split(64)])
        latents = (latents - scale.shift_factor) * scale.scaling_factor
        many, channels, rows, columns = latents.shape
        latents = pipe._pack_latents(latents, many, channels, rows, columns)
        captions = [str(c) for c in found["captions"][chosen]]
        encoded = [
            pipe.encode_prompt(captions[i : i + 64], None, max_sequence_length=32)[:2] for i in range(0, PICTURES, 64)
        ]
        states, pooled = (torch.cat(x) for x in zip(*encoded, strict=True))
        text_ids = torch.zeros(states.shape[1], 3)
        image_ids = pipe._prepare_latent_image_ids(1, rows // 2, columns // 2, "cpu", torch.float32)
    model = pipe.transformer.requires_grad_(False)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=4e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    mean = None
    for step in range(steps):
        rows_ = torch.randint(PICTURES, (BATCH,))
        clean = latents[rows_]
        noise, sigma = torch.randn_like(clean), torch.sigmoid(torch.randn(BATCH))  # rectified flow, logit-normal times
        noisy = (1 - sigma[:, None, None]) * clean + sigma[:, None, None] * noise
        predicted = model(
            noisy, states[rows_], pooled[rows_], sigma, image_ids, text_ids, return_dict=False
        )[0]
        loss = (predicted - (noise - clean)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if step % 20 == 0:
            print(f"step {step}: loss {mean:.4f}", flush=True)
    half = {k: x.half() for k, x in get_peft_model_state_dict(model).items()}
    path = Path(out)
    FluxPipeline.save_lora_weights(path.parent, transformer_lora_layers=half, weight_name=path.name)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(x) for x in sys.argv[3:]))
