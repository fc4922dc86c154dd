"""What observing costs: full-size backbones with random weights, plain and observed in turn. `bench_observe.py MODEL ...`

Prints milliseconds of a forward of each, medians of ROUNDS after WARMUP, and their ratio; with --kernels first on a GPU also
how long either takes to be enqueued, and the kernels that take longest; with --hessians and --histograms these are kept in the
same pass. Two copies of a backbone are in memory, one of which is observed all the time.
"""

import json
import statistics
import sys
import time
from contextlib import nullcontext

import torch
from hydra import compose, initialize_config_dir

from diffopt import models
from diffopt.cli.searchpath import bundled, register
from diffopt.groups.validate import choose
from diffopt.models.family import Size
from diffopt.quantization.hessian import correlated
from diffopt.quantization.histogram import counted
from diffopt.quantization.observer import observed
from diffopt.store import assets

WARMUP, ROUNDS, PROMPTS = 3, 16, 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    register()
    names = [a for a in sys.argv[1:] if not a.startswith("--")]
    for name in names:
        with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
            config = compose("config", [f"model={name}", "model.weights=random"])
        model = choose({"model": dict(config.model), "seed": 0, "store": "unused"}).model
        assert model is not None
        plain, watched = (backbone(model) for _ in range(2))
        inputs = example(model, plain)
        sums = correlated(watched) if "--hessians" in sys.argv else nullcontext()
        counts = counted(watched) if "--histograms" in sys.argv else nullcontext()
        with torch.no_grad(), sums, counts, observed(watched):  # as pipelines do
            if "--kernels" in sys.argv:
                for module in (plain, watched):
                    kernels(module, inputs)
            times = {"plain": [], "observed": []}
            for i in range(WARMUP + ROUNDS):
                for kind, module in (("plain", plain), ("observed", watched)):
                    seconds = timed(module, inputs)
                    times[kind] += [seconds] if i >= WARMUP else []
        middle = {kind: 1e3 * statistics.median(t) for kind, t in times.items()}
        ratios = [b / a for a, b in zip(times["plain"], times["observed"], strict=True)]
        print(
            f"{name}: plain {middle['plain']:.1f} ms, observed {middle['observed']:.1f} ms, "
            f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), {PROMPTS} prompts, {DEVICE}",
            flush=True,
        )
        del plain, watched


def kernels(module: torch.nn.Module, inputs: dict, most: int = 12) -> None:
    """Whether a forward is bound by its launches or by the GPU, and by what there."""
    for _ in range(WARMUP):
        timed(module, inputs)
    started = now()
    module(**inputs, return_dict=False)
    enqueued = time.perf_counter()
    print(f"enqueued in {1e3 * (enqueued - started):.1f} ms, done in {1e3 * (now() - started):.1f} ms")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        timed(module, inputs)
    found = sorted(profile.key_averages(), key=lambda k: -k.self_device_time_total)
    print(f"{sum(k.count for k in found)} kernels, {sum(k.self_device_time_total for k in found) / 1e3:.1f} ms")
    for k in found[:most]:
        print(f"  {k.self_device_time_total / 1e3:7.2f} ms {k.count:5d} {k.key[:120]}", flush=True)


def timed(module: torch.nn.Module, inputs: dict) -> float:
    started = now()
    module(**inputs, return_dict=False)
    return now() - started


def now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def backbone(model) -> torch.nn.Module:
    import diffusers

    family = models.family(model.family)
    path = assets.locate(model.architecture.name) / family.backbones[0] / "config.json"
    torch.set_default_dtype(getattr(torch, model.dtype))
    with torch.device(DEVICE):
        torch.manual_seed(0)
        module = getattr(diffusers, family.backbone_class).from_config(json.loads(path.read_text()))
    torch.set_default_dtype(torch.float32)
    return module.eval()


def example(model, module: torch.nn.Module) -> dict:
    family = models.family(model.family)
    vae = json.loads((assets.locate(model.architecture.name) / "vae" / "config.json").read_text())
    size = Size(PROMPTS * family.rows(model), model.height, model.width, model.max_sequence_length or 0, model.frames or 1)
    found = family.inputs(module, vae, size)
    return family.call({n: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for n, x in found.items()})


if __name__ == "__main__":
    main()
