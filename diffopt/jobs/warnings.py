"""What may go wrong with a run and is no reason to refuse it: a line each. Asks no network."""

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import disk_usage

from diffopt.jobs.cost import Cost, Estimate, hub_cache, sources_read
from diffopt.jobs.memory import CONTEXT
from diffopt.jobs.plan import Step
from diffopt.machine import environment
from diffopt.text import size
from diffopt.view import Choices

BUSY = 0.9
"""Of a memory, from which on an estimate that may be off by a quarter is said."""
GATED = ("FLUX.1-dev", "stable-diffusion-3")
"""In the names of repositories that ask for a licence to be accepted: those of conf/model that say so."""
BATCHES = {"calib": ("embed", "observe", "record", "correlate", "count", "sense"), "train": ("teach", "train", "phrase")}
"""Steps by the group whose batch size they read; the others read that of `eval`."""


def warnings(choices: Sequence[Choices], todo: list[Step], cost: Cost, store: Path) -> list[str]:
    """Of the steps to run, of one job or of several with these choices, and what they are estimated to take."""
    return [
        *_gpu_memory(choices, cost),
        *_ram(choices, cost),
        *_disk(cost, store),
        *_hub(todo),
        *_packages(choices),
        *_slow(choices, cost),
    ]


def lowered(step: str) -> str:
    """The setting that a step takes less memory by."""
    stage = step.partition(".")[0].partition("@")[0]
    group = next((g for g, stages in BATCHES.items() if stage in stages), "eval")
    return "train.micro_batch" if stage == "train" else f"{group}.batch_size"


def _spared(step: str, choices: Sequence[Choices]) -> str:
    """What else may lower it, as a part of a list."""
    keeps = any(c.train and not c.train.gradient_checkpointing for c in choices)
    return "set train.gradient_checkpointing=true, " if step == "train" and keeps else ""


def _most(cost: Cost, kind: str) -> Estimate | None:
    known = [e for e in cost.each if kind in e.peak]
    return max(known, key=lambda e: e.peak[kind], default=None)


def _gpu_memory(choices: Sequence[Choices], cost: Cost) -> Iterator[str]:
    gpus, most = environment.gpus(), _most(cost, "gpu")
    if not gpus or most is None:
        return
    have, free = gpus[0]["memory"] - CONTEXT, environment.gpu_free()
    if moved := [e for e in cost.each if e.placed]:
        yield (
            f"memory: the weights of {moved[0].name} do not fit the GPU's {size(gpus[0]['memory'])} and are moved there "
            f"{moved[0].placed}, which is slower (got {len(moved)} such steps); use a larger GPU, or a 16-bit model.dtype"
        )
    if most.peak["gpu"] > BUSY * have:
        yield (
            f"memory: {most.name} takes about {size(most.peak['gpu'])} of the GPU's {size(gpus[0]['memory'])} (got an "
            f"estimate); {_spared(most.name, choices)}lower {lowered(most.name)}, model.height or model.width, or use a "
            "larger GPU"
        )
    elif free is not None and most.peak["gpu"] + CONTEXT > free:
        yield (
            f"memory: {most.name} takes about {size(most.peak['gpu'])} of the GPU, of which other processes leave {size(free)} "
            f"(got an estimate); end them, or lower {lowered(most.name)}"
        )


def _ram(choices: Sequence[Choices], cost: Cost) -> Iterator[str]:
    most, have, free = _most(cost, "ram"), environment.ram(), environment.ram_free()
    if most is None:
        return
    if most.peak["ram"] > BUSY * have:
        yield (
            f"memory: {most.name} takes about {size(most.peak['ram'])} of RAM, which has {size(have)} (got an estimate); "
            f"{_spared(most.name, choices)}use a larger machine, a 16-bit model.dtype, or lower {lowered(most.name)}"
        )
    elif most.peak["ram"] > free:
        yield (
            f"memory: {most.name} takes about {size(most.peak['ram'])} of RAM, of which {size(free)} are free now "
            "(got an estimate); end what else runs"
        )


def _disk(cost: Cost, store: Path) -> Iterator[str]:
    free = disk_usage(store).free
    if cost.bytes > free:
        yield (
            f"disk: the artifacts take about {size(cost.bytes)}, but the store's disk has {size(free)} left "
            f"(got {str(store)!r}); free some by `diffopt store gc`, or set DIFFOPT_STORE to another disk"
        )


def _hub(todo: list[Step]) -> Iterator[str]:
    absent = [s for s in sources_read(todo) if s.local is None and not hub_cache(s)]
    if not absent:
        return
    named = absent[0].hub[0]
    more = f" and {len(absent) - 1} more" if absent[1:] else ""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield (
            f"hub: {named}{more} is not in the hub's cache, and HF_HUB_OFFLINE forbids to download it (got "
            f"{os.environ['HF_HUB_OFFLINE']!r}); unset it, or give directories"
        )
        return
    gated = [s.hub[0] for s in absent if any(g in s.hub[0] for g in GATED)]
    if gated and not _token():
        yield (
            f"hub: {gated[0]} is gated, and there is no token here (got none in HF_TOKEN or `hf auth login`'s file); accept "
            "its licence on its page, and log in"
        )


def _token() -> bool:
    """Whether there is one, without asking what it says."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    return bool(os.environ.get("HF_TOKEN")) or Path(os.environ.get("HF_TOKEN_PATH") or home / "token").is_file()


def _packages(choices: Sequence[Choices]) -> Iterator[str]:
    native = [c for c in choices if c.eval is not None and "native" in (c.eval.runtime, *c.eval.bench)]
    if any(c.format and c.format.quantize_mha for c in native) and find_spec("cudnn") is None:
        yield (
            "format.quantize_mha: attention is computed in 16 bits by native, since nvidia-cudnn-frontend is not installed "
            "(got true); pip install 'diffopt[native]'"
        )


def _slow(choices: Sequence[Choices], cost: Cost) -> Iterator[str]:
    large = [e for e in cost.each if (e.ram or 0) > 8 << 30]
    if large and not environment.gpus() and any(c.model for c in choices):
        yield (
            f"model: is computed on the CPU, since there is no NVIDIA GPU here (got {large[0].name} with about "
            f"{size(large[0].ram or 0)}); run it where there is one"
        )
