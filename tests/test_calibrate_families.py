"""For every family: a checkpoint of the store is bit for bit what modelopt's ordinary loop over the pipeline gives.

The grid is format x alpha x size, and for INT8 convolutions percentile x collect-method, where the plain loop has a
calibrator that counts denoising steps as the pipeline does. `make test` has a cell or two a family, `make matrix` all.
"""

from collections.abc import Callable, Iterator
from typing import Any

import modelopt.torch.quantization as mtq
import pytest
import torch
from modelopt.torch.quantization.calib import MaxCalibrator
from test_calibrate_once import differing
from tiny import BATCH, SEED, Bench, bench, emoji, prompt_set
from tiny_pipelines import TINY

from diffopt import formats
from diffopt.data.pictured import fitted
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.calib import counted
from diffopt.pipeline.open import family_of, open_pipeline
from diffopt.pipeline.pixels import pixels
from diffopt.quantization import checkpoint
from diffopt.quantization.block_fake_quant import simulated

STEPS = {"wan": 6, "wan_i2v": 6}
"""Denoising steps: each of Wan's two backbones must be reached."""
SETTINGS = {
    "int8": ("int8", 0.5, False),
    "int8_sq-0.3": ("int8_sq", 0.3, False),
    "int8_sq-0.8": ("int8_sq", 0.8, False),
    "fp8": ("fp8", 0.5, False),
    "fp8-attention": ("fp8", 0.5, True),
    "nvfp4": ("nvfp4", 0.5, False),
    "mxfp8": ("mxfp8", 0.5, False),
}
SIZES = (3, 6)
"""Prompts: one chunk and a half, and part of one."""
COLLECTED = [
    ("int8", 0.5, "default"),
    ("int8", 1.0, "global_min"),
    ("int8", 0.5, "min-max"),
    ("int8_sq", 1.0, "min-mean"),
    ("int8_sq", 0.5, "mean-max"),
]


def made(name: str) -> Bench:
    return emoji() if name == "emoji" else bench(family=name)


def steps(name: str) -> int:
    return STEPS.get(name, 2)


Loop = Callable[[torch.nn.Module], None]


def plainly(b: Bench, pipe: Any, size: int, many: int, on_batch: Any = None, on_step: Any = None) -> Loop:
    """A forward loop that calls the pipeline with the prompts themselves, as its users do."""
    family = family_of(b.pipeline())

    def stepped(_pipe: Any, _index: int, _time: Any, state: dict[str, Any]) -> dict[str, Any]:
        if on_step:
            on_step()
        return state

    def loop(_: torch.nn.Module) -> None:
        for first in range(0, size, BATCH):
            if on_batch:
                on_batch()
            prompts = list(b.prompts[first : min(first + BATCH, size)])
            arguments = family.arguments(b.call)
            asked: dict[str, Any] = {"prompt": prompts}
            if family.pictures:
                shown = pixels(family, prompt_set(prompts).given().prompts, b.call)
                asked |= {n: x.float().contiguous(memory_format=torch.channels_last) / 255 for n, x in shown.items()}
            if family.animates:
                paths = prompt_set(prompts).given().prompts
                asked = {"image": [fitted(p, b.call.width, b.call.height) for p in paths]}
            if "max_sequence_length" in family.reads:
                arguments["max_sequence_length"] = b.call.max_sequence_length
            if family.name == "qwen_image":  # it is guided only when it is given one
                arguments["negative_prompt"] = [b.call.negative_prompt] * len(prompts)
            pipe(
                **asked,
                num_inference_steps=many,
                generator=[torch.Generator("cpu").manual_seed(SEED + first + i) for i in range(len(prompts))],
                output_type="latent",
                callback_on_step_end=stepped,
                **arguments,
            )

    return loop


def ordinary(b: Bench, name: str, alpha: float, mha: bool, loop: Callable[[Any], Loop], calibrator: Any = None) -> Any:
    """The backbone, or those of a ModuleDict, quantized by modelopt with a loop over the pipeline."""
    pipe, pinned = open_pipeline(b.context(), b.pipeline()), PipelineFile.read(b.pipeline().path)
    family, method = family_of(b.pipeline()), formats.method(name)
    parts = {n: getattr(pipe, n) for n in pinned.backbones}
    model = torch.nn.ModuleDict(parts) if len(parts) > 1 else next(iter(parts.values()))
    convolutions = bool(method.convolution) and family.convolutions
    rules = method.rules(family.kept(pinned.blocks, pinned.backbones), [], mha, method.block_size, convolutions)
    for rule in rules:
        if calibrator and rule.get("parent_class") == "nn.Conv2d" and rule["quantizer_name"] == "*input_quantizer":
            rule["cfg"] = rule["cfg"] | {"calibrator": calibrator}
    with torch.no_grad(), simulated():
        mtq.quantize(model, {"quant_cfg": rules, "algorithm": method.calibration(alpha)}, loop(pipe))
    return model


def cells() -> Iterator[Any]:
    for name in [*TINY, "emoji"]:
        for setting in SETTINGS:
            for size in SIZES:
                quick = (name, setting, size) == ("sdxl", "int8_sq-0.8", 6)
                yield pytest.param(
                    name, setting, size, id=f"{name}-{setting}-{size}", marks=[] if quick else [pytest.mark.matrix]
                )


@pytest.mark.parametrize(("name", "setting", "size"), cells())
def test_a_checkpoint_is_that_of_the_ordinary_loop_over_the_pipeline(name: str, setting: str, size: int) -> None:
    b, (number, alpha, mha) = made(name), SETTINGS[setting]
    many = steps(name)
    if mha and not family_of(b.pipeline()).attention:
        pytest.skip("attention of this family is not quantized")
    ours = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(number, alpha=alpha, mha=mha, size=size, steps=many))
    theirs = ordinary(b, number, alpha, mha, lambda pipe: plainly(b, pipe, size, many))
    assert any(n.endswith("._amax") for n, _ in theirs.named_buffers()) or number == "mxfp8"
    assert differing(ours, theirs) == []


class Counter:
    """The plain loop's place, which its calibrators read."""

    batch = step = -1

    @classmethod
    def next_batch(cls) -> None:
        cls.batch, cls.step = cls.batch + 1, 0

    @classmethod
    def next_step(cls) -> None:
        cls.step += 1


class StepCalibrator(MaxCalibrator):
    """The plain way: one maximum per batch and step, reduced when calibration ends."""

    def __init__(self, steps: int, method: str, num_bits: int = 8, axis: Any = None, unsigned: bool = False):
        super().__init__(num_bits, axis, unsigned)
        self.steps, self.method = steps, method
        self.peaks: dict[tuple[int, int], torch.Tensor] = {}

    def collect(self, x: torch.Tensor) -> None:
        at = (Counter.batch, Counter.step)
        self.peaks[at] = max(self.peaks.get(at, torch.zeros(())), x.detach().abs().max())

    def compute_amax(self) -> torch.Tensor | None:
        if not self.peaks:
            return None
        batches = 1 + max(batch for batch, _ in self.peaks)
        table = torch.tensor([[self.peaks[b, s] for s in range(self.steps)] for b in range(batches)]).double()
        found = {
            "default": table.max(),
            "global_min": table.min(),
            "min-max": table.max(0).values.min(),
            "min-mean": table.mean(0).min(),
            "mean-max": table.max(0).values.mean(),
        }[self.method]
        return found.float()


def collected() -> Iterator[Any]:
    for name in ("sdxl", "sd21"):
        for i, (number, share, method) in enumerate(COLLECTED):
            marks = [] if (name, i) in (("sd21", 0),) else [pytest.mark.matrix]
            yield pytest.param(name, number, share, method, id=f"{name}-{number}-{share}-{method}", marks=marks)


@pytest.mark.parametrize(("name", "number", "share", "method"), collected())
def test_a_share_of_the_steps_and_a_collect_method_give_the_scales_of_a_calibrator_in_the_loop(
    name: str, number: str, share: float, method: Any
) -> None:
    b, many, size = made(name), 4, 6
    made_of = {"size": size, "steps": many, "percentile": share, "collect": method}
    ours = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(number, alpha=0.8, **made_of))

    def loop(pipe: Any) -> Loop:
        Counter.batch = -1
        return plainly(b, pipe, size, many, Counter.next_batch, Counter.next_step)

    theirs = ordinary(b, number, 0.8, False, loop, (StepCalibrator, (counted(many, share), method)))
    assert differing(ours, theirs) == []
    plain = b.checkpoint(number, alpha=0.8, size=size, steps=many)
    assert differing(ours, checkpoint.restore(b.context(), b.pipeline(), plain)) or (share, method) == (1.0, "default")
