"""What scoring costs beside the bare forward: 1,000 pictures through a CLIP, and the bootstrap.

    python tests/bench_eval.py [PICTURES [SIDE [MODEL]]]

MODEL is of the sizes of ViT-L-14, the default of `diffopt eval`, or of ViT-B-32, with random weights (the arithmetic is the
same); pictures of 512 x 512 by default; on a GPU where there is one. `bare` is the model alone on prepared pixels and
tokens, in the same batches; `eval` is `measure`, from PNGs on disk to values. On a CPU the two are run in turn, in parts of
96 pictures, so that a change of the machine's speed meets both; on a GPU, which waits at a part's beginning, each at once. On a
machine that others use, read the processor time.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as cli.py does, before anything loads torch: two pools of threads wait

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from diffopt.metrics import METRICS, Weights
from diffopt.metrics.intervals import interval
from diffopt.quality.scoring import BATCH, measure
from diffopt.store import assets

LARGE: dict[str, Any] = {
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
    "projection_dim": 768,
}
SIZES: dict[str, dict[str, Any]] = {"ViT-L-14": LARGE, "ViT-B-32": {"text_config": {}}}
"""Of openai/clip-vit-large-patch14 and openai/clip-vit-base-patch32; what is not here is transformers' default."""


def clip(folder: Path, model: str) -> Path:
    """A model with random weights, and the embedded model's tokenizer."""
    processor = CLIPProcessor.from_pretrained(assets.locate("asset:emoji/emoji-clip"))
    processor.image_processor.size = {"shortest_edge": 224}
    processor.image_processor.crop_size = {"height": 224, "width": 224}
    processor.save_pretrained(folder)
    sizes, tokenizer = SIZES[model], processor.tokenizer
    text = sizes["text_config"] | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    CLIPModel(CLIPConfig(**sizes | {"text_config": text})).save_pretrained(folder)
    return folder


def pictures(folder: Path, many: int, side: int) -> list[Path]:
    """Smooth noise, which PNG packs about as well as a photograph."""
    rng, found = np.random.default_rng(0), []
    for i in range(many):
        small = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).astype(int) + rng.integers(
            -4, 5, (side, side, 3)
        )
        found.append(folder / f"{i:04}.png")
        Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(found[-1])
    return found


def main(many: int = 1000, side: int = 512, model: str = "ViT-L-14") -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as temporary:
        paths, prompts = pictures(Path(temporary), many, side), [f"a photo of number {i}" for i in range(many)]
        scorer = METRICS["clip"].open(Weights({"clip": clip(Path(temporary) / "clip", model)}, device))
        spent = np.zeros((2, 2))  # bare and eval; seconds of the clock and of the processor
        values = []
        many_at_once = many if device == "cuda" else 3 * BATCH
        for start in range(-many_at_once, many, many_at_once):  # the first part warms up
            part = slice(max(start, 0), min(max(start, 0) + many_at_once, many))
            pixels = list(scorer.prepare([np.array(Image.open(p)) for p in paths[part]]))
            clocks = [now()]
            for first in range(0, len(pixels), BATCH):
                batch = slice(first, first + BATCH)
                scorer.score(pixels[batch], prompts[part][batch], None)
            clocks.append(now())
            found = measure(prompts[part], {"m": paths[part]}, {"clip": scorer}, device=device).values["clip"]["m"]
            clocks.append(now())
            if start >= 0:
                spent += np.diff(clocks, axis=0)
                values.append(found)
        began = time.process_time()
        interval(np.concatenate(values))
        bootstrap = time.process_time() - began
    on = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{many} pictures of {side} x {side} through {model}, batches of {BATCH}, {on}, {os.cpu_count()} cores")
    for name, (clock, processor) in zip(("bare forward", "diffopt eval"), spent, strict=True):
        print(f"{name}  {clock:7.1f} s, {processor:7.1f} s of processor time")
    clock, processor = spent[1] / spent[0]
    print(f"ratio         {clock:7.3f}    {processor:7.3f}")
    print(f"bootstrap     {bootstrap:7.3f} s of processor time for 10,000 samples over {many}")


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
