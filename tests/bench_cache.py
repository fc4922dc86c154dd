"""What block caching buys and costs in wall time: full-size SDXL and FLUX.1-dev with random weights, blocks compiled.

    python tests/bench_cache.py sdxl flux_dev                # on one GPU; compiling SDXL's blocks takes minutes
    python tests/bench_cache.py sdxl --rounds 3 --eager
    python tests/bench_cache.py sdxl flux_dev --tiny --eager --rounds 1      # that the script works, on a CPU

All variants run on one compiled pipeline, in turn: a row's ratios are of runs next to each other. Pictures are decoded.
`never` is an attached cache whose policy reuses nothing: its ratio is the overhead. To reach: SDXL (fp16, 30 steps) default
1.6x and every=5 2.6x; FLUX.1-dev with half of the steps computed 1.8x; `never` above 0.99x.
"""

import argparse
import statistics
import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from caching import attached
from tiny import Bench, bench, called, folder

from diffopt.caches.target import session, target_of
from diffopt.pipeline.open import open_pipeline

# Name: tiny pipeline, dtype, steps, what it is called with, variants of cachify.
MODELS: dict[str, tuple[str, str, int, dict[str, Any], dict[str, dict[str, Any] | None]]] = {
    "sdxl": (
        "sdxl",
        "float16",
        30,
        {"tokens": None, "guidance_scale": 5.0},
        {"plain": None, "default": {}, "every=5": {"every": 5}, "never": {"start": 30}},
    ),
    "flux_dev": (
        "flux",
        "bfloat16",
        28,
        {"tokens": 512, "guidance_scale": 3.5},
        {"plain": None, "default": {}, "every=3": {"every": 3}, "never": {"start": 28}},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=sorted(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--tiny", action="store_true", help="tiny pipelines, to try the script")
    chosen = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}", flush=True)
    for name in chosen.models:
        measure(name, chosen, device)


def measure(name: str, chosen: argparse.Namespace, device: str) -> None:
    family, dtype, steps, call, variants = MODELS[name]
    if chosen.tiny:
        b = bench(family=family)
    else:
        how = called(1024, call["tokens"], guidance_scale=call["guidance_scale"])
        source = f"asset:architectures/{name}"
        b = Bench(folder(), source, dtype, how, device=device, family=family, weights="random")
    pipe = open_pipeline(b.context(), b.pipeline())
    target = target_of(pipe)
    blocks = {n: m for backbone in target.backbones.values() for n, m in target.blocks(backbone).items()}
    if not chosen.eager:
        for block in blocks.values():
            block.compile()

    def run() -> float:
        started = now(device)
        b.draw(pipe, [b.prompts[0]], [1], steps)
        return now(device) - started

    def timed(variant: str) -> float:
        fields = variants[variant]
        cache = None if fields is None else attached(pipe, "cachify", **fields)
        with nullcontext() if cache is None else session(cache):
            seconds = run()
        if cache is not None:
            if variant not in saved:
                saved[variant] = cache.statistics()
            cache.detach()
        return seconds

    saved: dict[str, Any] = {}
    started = now(device)
    for variant in variants:
        timed(variant)
    print(f"\n{name}: {dtype}, {steps} steps, {len(blocks)} blocks; warmed up in {now(device) - started:.0f} s", flush=True)
    seconds: dict[str, list[float]] = {v: [] for v in variants}
    for _ in range(chosen.rounds):
        for variant in variants:
            seconds[variant].append(timed(variant))
    print(f"{'variant':10} {'ms, median':>11} {'ratio, mean':>12} {'lowest':>8} {'highest':>8} {'arithmetic':>11} {'hits':>6}")
    for variant, times in seconds.items():
        ratios = np.array(seconds["plain"]) / np.array(times)
        found = saved.get(variant)
        computed, hits = (found.computed, found.hits) if found else (1.0, 0)
        row = f"{variant:10} {1e3 * statistics.median(times):11.1f} {ratios.mean():11.3f}x {ratios.min():8.3f}"
        print(f"{row} {ratios.max():8.3f} {computed:11.3f} {hits:6}", flush=True)


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
