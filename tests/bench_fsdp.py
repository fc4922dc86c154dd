"""A QAD step at the size of FLUX.1-dev, student and teacher in shards over GPUs by accelerate's FSDP2: memory and time.

    torchrun --nproc_per_node=2 tests/bench_fsdp.py                      # two GPUs of 80 GB
    torchrun --nproc_per_node=4 tests/bench_fsdp.py --batch 2
    torchrun --nproc_per_node=2 tests/bench_fsdp.py --tiny               # two processes on a CPU, by gloo: does it run

BF16 weights and gradients, NVFP4 weights and inputs by Model-Optimizer's kernels, a teacher of the same size in BF16, weights
drawn at random in their shards: no process ever holds a whole model. Optimizers of 8 bits, by --optimizer:

    torchao        torchao.optim.AdamW8bit on the shards
    bitsandbytes   bitsandbytes.optim.AdamW8bit on each process's own part of them
    own            Blockwise below: AdamW with both moments in 8 bits, as arithmetic of torch
    bf16           torch.optim.AdamW, whose moments are of the weights' 16 bits: the comparison
    auto           the first of torchao, bitsandbytes and own that is installed

Prints a table: parameters, and per process bytes after each stage, peak, seconds of each step, loss.
"""

import argparse
import json
import os
import time
import types
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from diffopt import asset, formats
from diffopt.models import family
from diffopt.models.family import Size

DEVIATIONS, INPUT_AMAX = 5.5, 12.0
"""What calibration would have found: of normal weights so many standard deviations, and of inputs."""
BLOCK = 256  # numbers that share a scale in a moment of 8 bits, as bitsandbytes has it
TINY = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2}
TINY |= {"joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (8, 12, 12), "in_channels": 16}


class Blockwise(torch.optim.Optimizer):
    """AdamW whose moments lie in 8 bits: the first as signed integers, the root of the second as unsigned ones, a scale for
    each 256. Works on plain tensors: of a shard on the part that this process has."""

    def __init__(self, parameters: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.numel():
                    self._update(p, p.grad.flatten().float(), group)

    def _update(self, p: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[p], group["betas"]
        state["step"] = state.get("step", 0) + 1
        mean = self._read(state, "mean", grad, 127).lerp_(grad, 1 - first)
        root = self._read(state, "root", grad, 255)
        variance = root.mul_(root).mul_(second).addcmul_(grad, grad, value=1 - second)
        self._write(state, "mean", mean, torch.int8, 127)
        root = variance.sqrt()
        self._write(state, "root", root, torch.uint8, 255)
        root.div_((1 - second ** state["step"]) ** 0.5).add_(group["eps"])
        change = mean.div_(root).mul_(-group["lr"] / (1 - first ** state["step"]))
        p.add_(change.view_as(p).to(p.dtype))

    def _read(self, state: dict[str, Any], name: str, like: torch.Tensor, most: int) -> torch.Tensor:
        if name not in state:
            return torch.zeros_like(like)
        return (state[name].float() * (state[f"{name}_scale"] / most)[:, None]).flatten()[: like.numel()]

    def _write(self, state: dict[str, Any], name: str, x: torch.Tensor, dtype: torch.dtype, most: int) -> None:
        blocks = torch.nn.functional.pad(x, (0, -x.numel() % BLOCK)).view(-1, BLOCK)
        scale = blocks.abs().amax(1).clamp_min_(1e-30)
        state[name], state[f"{name}_scale"] = (blocks / scale[:, None] * most).round_().to(dtype), scale


class OnShards:
    """An optimizer of plain tensors on this process's parts of sharded parameters: an update of Adam is number by number."""

    def __init__(self, parameters: list[torch.nn.Parameter], make: Any):
        self.whole = parameters
        self.parts = [torch.nn.Parameter(local(p.detach()), requires_grad=True) for p in parameters]
        self.optimizer = make([p for p in self.parts if p.numel()])

    def step(self) -> None:
        for whole, part in zip(self.whole, self.parts, strict=True):
            part.grad = None if whole.grad is None else local(whole.grad).to(part.dtype)
        self.optimizer.step()
        for whole, part in zip(self.whole, self.parts, strict=True):
            whole.grad = part.grad = None


def local(x: torch.Tensor) -> torch.Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def optimizer_of(name: str, parameters: list[torch.nn.Parameter], rate: float) -> tuple[str, Any]:
    """What it is, said plainly, and the optimizer."""
    if name == "auto":
        name = next((n for n in ("torchao", "bitsandbytes") if find_spec(n) and torch.cuda.is_available()), "own")
    if name == "torchao":
        from torchao.optim import AdamW8bit

        made = AdamW8bit(parameters, lr=rate)
        return "torchao AdamW8bit (8-bit moments)", Plain(made)
    if name == "bitsandbytes":
        from bitsandbytes.optim import AdamW8bit as OfParts

        return "bitsandbytes AdamW8bit (8-bit moments)", OnShards(parameters, lambda parts: OfParts(parts, lr=rate))
    if name == "own":
        return "own blockwise AdamW (8-bit moments)", OnShards(parameters, lambda parts: Blockwise(parts, lr=rate))
    return "torch AdamW (16-bit moments)", Plain(torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0))


class Plain:
    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def config(tiny: bool) -> dict[str, Any]:
    found = json.loads((asset.locate("asset:architectures/flux_dev") / "transformer" / "config.json").read_text())
    return found | TINY if tiny else found


def outline(about: dict[str, Any]) -> Any:
    """The model without weights."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel.from_config(about).to(torch.bfloat16)


def quantized(model: Any) -> int:
    """Put NVFP4 quantizers into it, with scales as a calibration leaves them; how many layers have them."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn import TensorQuantizer

    kind = family("flux")
    blocks = {name: len(getattr(model, name)) for name in kind.blocks}
    rules = formats.method("nvfp4").rules(kind.kept(blocks, ["transformer"]), [], False)
    mtq.quantize(model, {"quant_cfg": rules, "algorithm": None})
    found = 0
    for name, module in model.named_modules():
        if isinstance(module, TensorQuantizer) and module.is_enabled:
            weight = name.endswith("weight_quantizer")
            layer = model.get_submodule(name.rpartition(".")[0])
            module.amax = torch.tensor(DEVIATIONS * layer.in_features**-0.5 if weight else INPUT_AMAX)
            found += weight
    return found


def sharded(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin, model: Any, seed: int) -> Any:
    """The model over all processes, its weights drawn in their shards."""
    if (
        accelerator.device.type == "cpu"
    ):  # accelerate has FSDP2 on GPUs alone, and forgets what it is told; torch has it on gloo
        accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    assert accelerator.is_fsdp2
    dummy = torch.optim.SGD([next(model.parameters())], lr=0.0)  # without an optimizer accelerate shards nothing
    model, _ = accelerator.prepare(model, dummy)
    model._apply(lambda x: torch.empty_like(x, device=accelerator.device) if x.is_meta else x.to(accelerator.device))
    torch.manual_seed(seed * 1000 + accelerator.process_index)
    with torch.no_grad():
        for name, p in model.named_parameters():
            part = local(p)
            if p.dim() > 1:
                part.normal_(0, p.shape[-1] ** -0.5)
            else:
                part.fill_(1.0 if name.endswith("weight") else 0.0)  # norms and biases
    return model


def patched(accelerator: Accelerator) -> Accelerator:
    """With Model-Optimizer's own `prepare`, which hides the quantizers' buffers from the sharding: its trainers apply it."""
    from modelopt.torch.quantization.plugins.transformers_trainer import QATTrainer

    QATTrainer._patch_accelerate_for_fsdp2_fix(types.SimpleNamespace(accelerator=accelerator))  # type: ignore[arg-type]
    return accelerator


def inputs(model: Any, tiny: bool, batch: int, device: torch.device, seed: int) -> dict[str, torch.Tensor]:
    """Of a picture of 1024x1024 pixels and 512 tokens, or of 64x64 and 16."""
    side, text = (64, 16) if tiny else (1024, 512)
    vae = json.loads((asset.locate("asset:architectures/flux_dev") / "vae" / "config.json").read_text())
    found = family("flux").inputs(Outline(model), vae, Size(batch, side, side, text))
    draw = torch.Generator().manual_seed(seed)
    for name in ("hidden_states", "encoder_hidden_states", "pooled_projections"):
        found[name] = torch.randn(found[name].shape, generator=draw).to(torch.bfloat16)
    found["timestep"] = torch.rand(batch, generator=draw).to(torch.bfloat16)
    return {name: x.to(device) for name, x in found.items()}


class Outline:
    """What inputs are made of."""

    def __init__(self, model: Any):
        self.config, self.dtype = model.config, torch.bfloat16


class Memory:
    """Bytes of this process on its GPU, or in RAM."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def now(self) -> int:
        return torch.cuda.memory_allocated() if self.cuda else resident("VmRSS")

    def peak(self) -> int:
        return torch.cuda.max_memory_reserved() if self.cuda else resident("VmHWM")


def resident(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--batch", type=int, default=1, help="items per process and step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--optimizer", default="auto", choices=["auto", "torchao", "bitsandbytes", "own", "bf16"])
    parser.add_argument("--keep-activations", action="store_true", help="do not compute blocks again for the gradient")
    given = parser.parse_args()
    cpu = given.tiny and not torch.cuda.is_available()

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["FluxTransformerBlock", "FluxSingleTransformerBlock"],
        cpu_ram_efficient_loading=False,
    )
    accelerator = patched(Accelerator(cpu=cpu, fsdp_plugin=plugin))
    device, memory = accelerator.device, Memory(accelerator.device)
    bytes_: dict[str, int] = {"start": memory.now()}
    with ExitStack() as stack:
        if cpu:
            from diffopt.block_arithmetic import simulated

            stack.enter_context(simulated())
        from diffopt.training.attention import differentiable

        stack.enter_context(differentiable())
        about = config(given.tiny)
        student = outline(about)
        parameters = sum(p.numel() for p in student.parameters())
        layers = quantized(student)
        if not given.keep_activations:
            student.enable_gradient_checkpointing()
        student = sharded(accelerator, plugin, student.train(), 1)
        bytes_["student"] = memory.now()
        teacher = sharded(accelerator, plugin, outline(about).requires_grad_(False).eval(), 1)
        bytes_["and teacher"] = memory.now()
        check(student, teacher, accelerator)
        trained = [p for p in student.parameters() if p.requires_grad]
        label, optimizer = optimizer_of(given.optimizer, trained, given.rate)
        rows = []
        for step in range(given.steps):
            x = inputs(student, given.tiny, given.batch, device, 0 if given.tiny else step * 97 + accelerator.process_index)
            if not cpu:
                torch.cuda.synchronize()
            dist.barrier()
            started = time.perf_counter()
            with torch.no_grad():
                target = teacher(**x, return_dict=False)[0]
            loss = torch.nn.functional.mse_loss(student(**x, return_dict=False)[0].float(), target.float())
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            if not cpu:
                torch.cuda.synchronize()
            total = loss.detach().clone()
            dist.all_reduce(total)
            rows.append((time.perf_counter() - started, float(total) / accelerator.num_processes, float(norm.full_tensor())))
            bytes_.setdefault("and optimizer", memory.now())
        bytes_["peak"] = memory.peak()
    everyone: list[Any] = [None] * accelerator.num_processes
    dist.all_gather_object(everyone, bytes_)
    if accelerator.is_main_process:
        where = torch.cuda.get_device_name() if not cpu else "CPU"
        print(
            f"{accelerator.num_processes} x {where}, torch {torch.__version__}, {parameters / 1e9:.4g} B parameters, ", end=""
        )
        print(f"{layers} NVFP4 layers, batch {given.batch} per process, {label}")
        for i, one in enumerate(everyone):
            print(f"process {i}: " + ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in one.items()))
        for i, (seconds, value, norm) in enumerate(rows):
            print(f"step {i}: {seconds:.2f} s, loss {value:.4e}, gradient norm {norm:.3e}")
        later = sorted(seconds for seconds, _, _ in rows[1:])
        if later:
            print(f"median of the steps after the first: {later[len(later) // 2]:.3f} s")
    accelerator.end_training()


def check(student: Any, teacher: Any, accelerator: Accelerator) -> None:
    """That what is measured is what is said: every large weight in shards, quantizers on, the teacher frozen."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    whole = [n for m in (student, teacher) for n, p in m.named_parameters() if not isinstance(p, DTensor)]
    assert not whole, f"not in shards: {whole[:3]}"
    assert all(p.dtype == torch.bfloat16 for m in (student, teacher) for p in m.parameters())
    on = [m for m in student.modules() if isinstance(m, TensorQuantizer) and m.is_enabled]
    assert on
    assert all(m.amax.device.type == accelerator.device.type for m in on)
    assert not any(p.requires_grad for p in teacher.parameters())


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
