"""The chains that soak_store.py kills: small ones of the embedded model, in which every stage has a place."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec

CALIBRATED = ("calib.prompts=few.txt", "calib.size=2", "calib.n_steps=2")
DRAWN = ("eval.prompts=few.txt", "eval.size=2", "eval.steps=2", "eval.metrics=[psnr]")
FEW = (*DRAWN, *CALIBRATED)
FOR = ("train.steps=4", "train.warmup=1", "train.batch_size=2", "train.save_every=1", "train.validation=null")
TRAINED = (*FOR, "train.data.size=4", "train.data.batch_size=2", "train.data.chunk=2", "train.data.steps=2")
PACKAGE = "{package}"
"""In a pick, the directory of what the chain `packed` has made."""


@dataclass(frozen=True)
class Chain:
    picks: tuple[str, ...]
    needs: str = ""
    """A module without which it is not run."""

    @property
    def lacks(self) -> str:
        return self.needs if self.needs and not find_spec(self.needs) else ""


INT8 = ("+recipe=quickstart", *FEW)
SLIM = ("+recipe=emoji_fp8", *FEW, "export=null", "format.components={text_encoder_2: int8}")
SEARCH = ("format=int4_awq", "format.weights=local_hessian", "export=null")
SHARDS = ("train.parallel=fsdp", "train.processes=2")
CHAINS: Mapping[str, Chain] = {
    "packed": Chain(("+recipe=emoji_fp8", *FEW, "format.share_scales=true", "export=native")),
    "adopted": Chain(
        (
            "model=emoji_flux",
            f"model.source={PACKAGE}",
            "model.base=asset:emoji/emoji-flux",
            "eval=emoji",
            *DRAWN,
            "export=comfyui",
        )
    ),
    "engine": Chain((*INT8, "export=tensorrt", "eval.latency=false"), "tensorrt_rtx"),
    "timed": Chain((*INT8, "export=onnx", "eval.latency=true", "eval.warmup=1", "eval.repeats=3")),
    "benched": Chain((*INT8, "export=onnx", "eval.runtime=torch", "eval.bench=[eager,onnxruntime]", "eval.repeats=3")),
    "sensed": Chain(("+recipe=emoji_auto", *FEW, "export=onnx", "sense.size=2")),
    "counted": Chain(("+recipe=emoji_fp8", *FEW, "format.inputs=percentile", "export=null")),
    "recorded": Chain(("+recipe=emoji_four_bits", "hydra.mode=RUN", *FEW, *SEARCH)),
    "cached": Chain(("+recipe=emoji_cache_search", *DRAWN, "cache.search.floor={psnr: 1}")),
    "slimmed": Chain(SLIM, "torchao"),
    "in parts": Chain((*SLIM, "eval.chunk=1", "eval.batch_size=1"), "torchao"),
    "trained": Chain(("+recipe=emoji_fp4_qad", *FEW, *TRAINED)),
    "in shards": Chain(("+recipe=emoji_fp4_qad", *FEW, *TRAINED, *SHARDS)),
}
NOT_HERE = {"parity": "it wants an NVIDIA GPU"}
"""Stages that no chain has, which all run on a CPU."""


def stages() -> list[str]:
    """All that are built in, in their order."""
    found = sorted(entry_points(group="diffopt.stages"), key=lambda e: e.name)
    return [e.value.rpartition(":")[2] for e in found if e.value.startswith("diffopt.stages.")]


def unhit(hit: Iterable[str], had: Collection[str]) -> dict[str, str]:
    """Stages that were not, and of those that no chain had why."""
    lacking = [f"chain {name} lacks {chain.lacks}" for name, chain in CHAINS.items() if chain.lacks]
    return {s: "" if s in had else NOT_HERE.get(s, ", ".join(lacking)) for s in stages() if s not in {*hit}}
