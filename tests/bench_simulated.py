"""What simulating costs: a full-size backbone with random weights. `bench_simulated.py MODEL [FORMAT ...] [--attention]`

Of every format (nvfp4, fp8 and int8_sq where none is named) milliseconds of a forward of one prompt, medians of ROUNDS after
WARMUP: as modelopt simulates it, with weights rounded once, and with what rounds compiled; each also as a ratio to compiled
BF16. Then relative differences of outputs. --attention rounds query, key and value too, where the format does. A summary is
printed last. On a GPU it takes a few minutes, and room for two copies of the backbone.
"""

import gc
import statistics
import sys
import time
from typing import Any

import bench_observe
import torch
from bench_observe import DEVICE, backbone, example, now
from hydra import compose, initialize_config_dir

from diffopt import formats, models
from diffopt.cli.searchpath import bundled, register
from diffopt.groups.validate import choose
from diffopt.quantization import checkpoint
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.folding import fold
from diffopt.quantization.observer import observed
from diffopt.quantization.traceable import traceable
from diffopt.runtimes.compiled import compile_blocks

WARMUP, ROUNDS, ALPHA = 3, 10, 0.8
FORMATS = ("nvfp4", "fp8", "int8_sq")


def main() -> None:
    name, *chosen = [a for a in sys.argv[1:] if not a.startswith("--")] or ["flux_dev"]
    attention = "--attention" in sys.argv
    bench_observe.PROMPTS = 1
    register()
    with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
        config = compose("config", [f"model={name}", "model.weights=random"])
    model: Any = choose({"model": dict(config.model), "seed": 0, "store": "unused"}).model
    family = models.family(model.family)
    with torch.no_grad():
        plain = backbone(model)
        inputs = example(model, plain)
        with observed(plain) as extremes:
            full = plain(**inputs, return_dict=False)[0]
        blocks = {n: len(getattr(plain, n)) for n in family.blocks if hasattr(plain, n)}
        kept = family.kept(blocks, list(family.backbones))
        eager = timed(plain, inputs)
        compile_blocks(plain, family.blocks)
        base = timed(plain, inputs)
        print(f"{name}: bf16 eager {eager:.1f} ms, compiled {base:.1f} ms, {where()}", flush=True)
        rows = [f"{name} bf16: eager {eager:.1f} ms, compiled {base:.1f} ms"]
        del plain
        for format in chosen or FORMATS:
            tidy()
            method = formats.method(format)
            fake = backbone(model)
            rules = method.rules(kept, [], attention and method.attention, method.block_size, family.convolutions)
            checkpoint.quantize(fake, rules, method.calibration(ALPHA), extremes)
            rows.append(f"{name} {format}: {measured(fake, inputs, family.blocks, full, base)}")
            print(rows[-1], flush=True)
            del fake
    print("\nsummary", where())
    print("\n".join(rows))


def measured(fake: Any, inputs: dict[str, Any], blocks: tuple[str, ...], full: torch.Tensor, base: float) -> str:
    with simulated():
        wanted = fake(**inputs, return_dict=False)[0]
        before = timed(fake, inputs)
        fold(fake, DEVICE)
        folded, same = timed(fake, inputs), torch.equal(fake(**inputs, return_dict=False)[0], wanted)
    traceable(fake)
    plain = off(fake(**inputs, return_dict=False)[0], wanted)
    torch._dynamo.reset()
    started = time.perf_counter()
    compile_blocks(fake, blocks)
    found = fake(**inputs, return_dict=False)[0]
    seconds = time.perf_counter() - started
    after = timed(fake, inputs)
    return (
        f"before {before:.1f} ms ({before / base:.2f}x), folded {folded:.1f} ms ({folded / base:.2f}x, "
        f"{'bit-equal' if same else 'NOT bit-equal'}), folded and compiled {after:.1f} ms ({after / base:.2f}x, compiled in "
        f"{seconds:.0f} s); output off by {plain:.2e} in plain torch, {off(found, wanted):.2e} compiled; "
        f"the format itself by {off(wanted, full):.2e}"
    )


def timed(module: Any, inputs: dict[str, Any]) -> float:
    """Milliseconds."""
    times = []
    for i in range(WARMUP + ROUNDS):
        started = now()
        module(**inputs, return_dict=False)
        times += [now() - started] if i >= WARMUP else []
    return 1e3 * statistics.median(times)


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def tidy() -> None:
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def where() -> str:
    return torch.cuda.get_device_name() if DEVICE == "cuda" else "a CPU"


if __name__ == "__main__":
    main()
