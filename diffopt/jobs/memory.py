"""What a step takes of memory, by a rule: the weights that it holds at once, the neediest call beside them, and the libraries.

Of a GPU it is what torch's allocator has, as in records. What has no rule here, as an engine's own memory, is not foretold.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from diffopt import formats
from diffopt.files.layers import Layer
from diffopt.groups.format import Format, rounds, weights
from diffopt.groups.model import BYTES
from diffopt.jobs.body import Body
from diffopt.jobs.plan import Step
from diffopt.machine import environment
from diffopt.machine.memory import ROOM, SPARE
from diffopt.quantization.layers import without
from diffopt.runtimes.contenders import weight_bytes
from diffopt.training.footprint import adapted, footprint, share_trained
from diffopt.training.processes import started
from diffopt.view import Choices

MIB, GIB = 1 << 20, 1 << 30
CONTEXT = 700 * MIB
"""Of a GPU's memory, what its driver keeps for a process: 520 to 700 MiB on an H200, by tests/bench_preflight.py."""
WORK = 64 * MIB
"""Scratch memory of matrix products, within torch's allocator."""
HELD = 256 * MIB
"""What observing holds back: HELD of diffopt/quantization/observer.py."""
LIBRARIES = {"numerics": 850 * MIB, "modelopt": 200 * MIB, "onnx": 60 * MIB, "tensorrt": 300 * MIB}
"""RAM of the libraries behind each probe of a stage, once one has loaded them: as this command grew, on a CPU:
`diffopt +recipe=quickstart eval.size=16 eval.steps=4`."""
OF_GPU = {"cuda": 650 * MIB, "compiler": 500 * MIB}
"""RAM on top of a process that computes on a GPU, and of one whose blocks are compiled: on an H200 steps took 350 to 710
MiB and 1.15 to 1.23 GiB, by `python tests/bench_preflight.py DIRECTORY --short`."""
GPTQ_ON_GPU, GPTQ_ON_CPU = 16 * GIB, 4 * GIB
"""What is collected at once, ON_GPU and ON_CPU of diffopt/quantization/gptq.py."""
COPIED = 3
"""Of the widest beside it: with the damping, its factor, and its inverse."""
COMPILING = ("parity", "bench")
"""Stages that run `native` whatever `eval.runtime` is."""
COPIES = 4
"""Of a graph's weights in RAM at the end of its export: seen with 150 million parameters in FP32 and in INT8."""
LIMIT = 2**31 - 64 * MIB
"""LIMIT of diffopt/graph/file.py, from which on they go beside it."""


@dataclass(frozen=True)
class Held:
    """What a step has on the device that computes."""

    weights: Mapping[str, int]
    """Bytes of parts that lie there at once where they fit."""
    call: int = 0
    """Bytes of its neediest call."""
    before: int = 0
    """Bytes at another moment, when more weights are there and nothing is called."""
    ram: int = 0
    """Bytes in RAM, whatever the device."""


@dataclass(frozen=True)
class Need:
    """Bytes; None where no rule tells."""

    ram: int | None
    gpu: int | None
    """Of the GPU's memory; None without a GPU too."""
    placed: str = ""
    """How the weights lie on the GPU, where they do not fit: `by parts` or `by blocks`."""
    disk: int | None = None
    """Of the artifact."""


@dataclass
class Rules:
    """Of the steps of one job, which are asked for in the order in which they run: libraries stay once they are loaded."""

    choices: Choices
    body: Body | None
    layers: Sequence[Layer] = ()
    """Of the backbones, where they are known."""
    _loaded: set[str] = field(default_factory=set)

    def need(self, step: Step) -> Need:
        self._loaded |= {*step.stage.probes} | ({"onnx"} if step.stage.name == "export" else set())
        base = sum(LIBRARIES.get(name, 0) for name in self._loaded | {"numerics"})
        gpus = environment.gpus()
        held, disk = self._held(step), written(self, step)
        if held and (held.weights or held.call):
            self._loaded.add("cuda")
            compiles = step.stage.name in COMPILING or getattr(step.views.get("eval"), "runtime", None) == "native"
            self._loaded |= {"compiler"} if compiles else set()
        if held is None:
            return Need(None, None, disk=disk)
        total = sum(held.weights.values())
        most = max(total + max(held.call, held.ram), held.before)
        if not gpus:
            return Need(base + most, None, disk=disk)
        on_gpu, placed = _placed(held, gpus[0]["memory"] - CONTEXT)
        through = total if (self.body and self.body.read) or placed else 0
        return Need(base + self.of_gpu + through + held.ram, on_gpu + (WORK if on_gpu else 0), placed, disk)

    @property
    def of_gpu(self) -> int:
        """RAM that computing on a GPU takes by now."""
        return sum(many for name, many in OF_GPU.items() if name in self._loaded)

    def _held(self, step: Step) -> Held | None:
        name = step.stage.name
        if name in ("load", "merge", "mix", "compare"):
            return Held({})
        rule = RULES.get(name)
        return rule(self, self.body, step) if rule and self.body else None

    def packed(self, body: Body) -> int:
        """Bytes of the backbones in the chosen format, as a runtime with its kernels has them."""
        if self.choices.format is None:
            return body.backbone
        bits = min(m.bits(self.choices.format.block_size) for m in formats.methods(self.choices.format))
        numbers = body.backbone // body.width
        left = without(self.layers, self.choices.format.exclude)
        linear = sum(prod(x.shape) for x in left if x.kind == "linear")
        quantized = min(linear, numbers) if self.layers else numbers
        return int((numbers - quantized) * body.width + quantized * bits / 8)


def _placed(held: Held, have: int) -> tuple[int, str]:
    """Bytes on the GPU at most, and how the parts lie there, as `place` decides."""
    total = sum(held.weights.values())
    if total * ROOM + SPARE <= have or not total:
        return max(total + held.call, held.before), ""
    largest = max(held.weights.values())
    if len(held.weights) > 1 and largest * ROOM + SPARE <= have:
        return largest + held.call, "by parts"
    rest = sum(n for n in held.weights.values() if n != largest and n * ROOM + SPARE <= have)
    return rest + held.call + largest // 20, "by blocks"


def batch(step: Step) -> int:
    """Prompts of a call: the batch size of its views, at most as many as there are prompts."""
    for name in ("calib", "eval", "train"):
        view = step.views.get(name)
        if (size := getattr(view, "batch_size", None)) is not None:
            prompts = getattr(view, "prompts", None)
            return min(size, len(prompts)) if prompts is not None else int(size)
    return 1


def _texts(rules: Rules, body: Body, step: Step) -> Held | None:
    return Held({"text encoders": body.texts}) if body.texts is not None else None


def _denoised(rules: Rules, body: Body, step: Step) -> Held:
    more = HELD if step.stage.name == "observe" and environment.gpus() else 0
    vae = {"VAE": body.vae} if body.family.animates else {}
    return Held({"backbone": body.backbone, **vae}, body.call(batch(step)) + more)


def _opened(rules: Rules, body: Body, step: Step) -> Held:
    largest = max((prod(x.shape) for x in rules.layers), default=0)
    ram = _found(rules, body) + _inlined(rules, step)
    return Held({"backbone": body.backbone}, 2 * 4 * largest, ram=ram)  # in FP32, and what is made of it


def _inlined(rules: Rules, step: Step) -> int:
    """Of a graph whose weights go into its own file: what is read again, set into the graph, encoded and written."""
    if step.stage.name != "export":
        return 0
    graph = written(rules, step) or 0
    return COPIES * graph if graph < LIMIT else 0


def _searched(rules: Rules, body: Body, step: Step) -> Held:
    format = rules.choices.format
    if format is not None and rounds(format):
        collected = [4 * x.shape[1] ** 2 for x in without(rules.layers, format.exclude) if x.kind == "linear"]
        room = GPTQ_ON_GPU if environment.gpus() else GPTQ_ON_CPU
        more = max(min(sum(collected), room), *collected) + COPIED * max(collected) if collected else 0
        # Each input is squared in FP32, in two copies.
        return Held({"backbone": body.backbone}, 2 * body.call(1) + more, ram=_found(rules, body))
    if format is not None and any(m.records for m in formats.methods(format)):
        return Held({"backbone": body.backbone}, body.call(1), ram=_found(rules, body))
    return _opened(rules, body, step)


def _drawn(rules: Rules, body: Body, step: Step) -> Held | None:
    if step.inputs.get("parts"):  # which are drawn already
        return Held({})
    runtime = getattr(step.views.get("eval"), "runtime", "torch")
    return _running(rules, body, runtime, bool(step.inputs.get("subject")), batch(step))


def _running(rules: Rules, body: Body, runtime: str, formatted: bool, pictures: int) -> Held | None:
    call = max(body.call(pictures), body.decode(pictures))
    if runtime == "tensorrt":
        return None
    if runtime == "onnxruntime":  # which packs the weights anew beside those of the file
        return Held({"graph": 2 * (rules.packed(body) if formatted else body.backbone), "VAE": body.vae}, call)
    if runtime == "native" and formatted and rules.choices.format:
        packed = rules.packed(body)
        return Held({"backbone": packed, "VAE": body.vae}, call, before=body.backbone + packed // 20)
    return Held({"backbone": body.backbone, "VAE": body.vae}, call)


def _timed(rules: Rules, body: Body, step: Step) -> Held | None:
    """Two sides, each with a pipeline of its own."""
    runtime = getattr(step.views.get("eval"), "runtime", "torch")
    base = _running(rules, body, runtime, False, 1)
    other = _running(rules, body, runtime, True, 1) if step.inputs.get("subject") or step.views.get("cache") else None
    if base is None or body.texts is None:
        return None
    sides = [side for side in (base, other) if side]
    weights = {f"{name} {i}": n for i, side in enumerate(sides) for name, n in side.weights.items()}
    weights |= {f"text encoders {i}": body.texts for i in range(len(sides))}
    before = sum(base.weights.values()) + body.texts + (other.before if other else 0)
    return Held(weights, base.call, before)


def _benched(rules: Rules, body: Body, step: Step) -> Held | None:
    eval = rules.choices.eval
    if eval is None or "tensorrt" in eval.bench or body.texts is None:
        return None
    packed = rules.packed(body) / max(1, body.backbone // body.width)
    numbers = body.backbone // body.width
    before = weight_bytes(eval.bench, numbers, body.width, packed) + body.texts
    after = (rules.packed(body) if "native" in eval.bench else 0) + body.backbone
    call = max(body.call(eval.batch_size), body.decode(eval.batch_size))
    return Held({"backbones": after, "VAE": body.vae, "text encoders": body.texts}, call, before)


def _paired(rules: Rules, body: Body, step: Step) -> Held:
    pictures = batch(step)
    call = 2 * body.call(pictures)  # and what is kept of a call, to be compared
    return Held({"backbone": body.backbone, "native": rules.packed(body), "VAE": body.vae}, max(call, body.decode(pictures)))


def _scored(rules: Rules, body: Body, step: Step) -> Held:
    from diffopt.pipeline.outline import parameters

    view = step.views.get("eval")
    weights = {}
    for name in ("clip", "imagereward", "features"):
        source = getattr(view, name, None)
        if source is not None and source.local and f"eval.{name}" in step.used:
            weights[name] = 4 * parameters(sorted(source.local.glob("*.safetensors")))
    return Held(weights)


def _trained(rules: Rules, body: Body, step: Step) -> Held | None:
    train, gpus = rules.choices.train, environment.gpus()
    if train is None or started(train, len(gpus)) * train.machines > 1:  # each process has memory of its own
        return None
    about = train, rules.layers, [*body.family.keep]
    taken = footprint(train, body.backbone // body.width, adapted(*about), body.model.dtype, bool(gpus))
    items, parts, kept = train.micro_batch or train.batch_size, sum(taken.parts.values()), 0
    if not train.gradient_checkpointing:
        width = BYTES[train.precision]
        each = body.kept(items, width) + body.backbone // body.width * width  # and weights, which each call rounds anew
        kept = int(taken.calls * each * share_trained(*about))
    # Nothing of it is moved away where the GPU is full, as weights that are only called are.
    ram = (body.backbone if body.read else 0) + taken.offloaded
    return Held({}, parts + max(taken.total - parts, body.call(items), kept), ram=ram)


def _built(rules: Rules, body: Body, step: Step) -> Held | None:
    graph = rules.packed(body)
    return None if environment.gpus() else Held({"graph": graph, "plan": graph})


Rule = Callable[[Rules, Body, Step], Held | None]
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("embed", "encode", "encode_part", "phrase"), _texts),
    **dict.fromkeys(("observe", "record", "correlate", "count", "teach", "sense", "ratios"), _denoised),
    **dict.fromkeys(("export", "pack", "deploy", "adopt"), _opened),
    **dict.fromkeys(("reference", "reference_part", "alternative", "sample", "sample_part", "search"), _drawn),
    "quantize": _searched,
    "time": _timed,
    "bench": _benched,
    "parity": _paired,
    "score": _scored,
    "train": _trained,
    "build": _built,
}
"""By stage."""

BLOCK = 16
"""Weights of NVFP4 that share a scale."""
SMALL = 1 << 20
"""Bytes at most of an artifact that holds no weights, pictures or embeddings."""
TEXTS = ("embed", "encode", "encode_part", "phrase")
WEIGHTS = ("export", "build", "pack", "deploy")
PICTURES = ("reference", "reference_part", "sample", "sample_part", "alternative")


def written(rules: Rules, step: Step) -> int | None:
    """Bytes of a step's artifact at most; None where no rule tells."""
    body, name = rules.body, step.stage.name
    if body is None or name in ("record", "collect", "teach", "correlate", "count", "adopt"):
        return None
    prompts = next((len(p) for v in step.views.values() if (p := getattr(v, "prompts", None)) is not None), 1)
    if name in TEXTS:
        shapes = body.family.embeddings(body.config, prompts, body.model)
        return body.width * sum(prod(x) for x in shapes.values())
    if name in WEIGHTS:
        return body.backbone if step.name.endswith(".baseline") else rules.packed(body)
    if name in PICTURES:
        return prompts * 3 * body.model.height * body.model.width * (body.model.frames or 1)
    if name == "quantize":
        return SMALL + _found(rules, body)
    return body.backbone if name == "train" else SMALL


def _found(rules: Rules, body: Body) -> int:
    """Bytes of what a calibration finds for its checkpoint: scales, codes and low-rank parts. In RAM where it is sought, and
    where a graph or a package is made of it."""
    format = rules.choices.format
    if format is None:
        return 0
    rank = max((format.rank or m.rank for m in formats.methods(format) if m.rank), default=0)
    sides = sum(sum(x.shape) for x in without(rules.layers, format.exclude) if x.kind == "linear")
    return _kept(format, body.backbone // body.width) + rank * sides * body.width


def _kept(format: Format, numbers: int) -> int:
    """Bytes of what a checkpoint has of so many weights at most: a byte for each block's scale where these are sought, and half
    a byte of codes for each weight where it is not rounded to the nearest."""
    scales = numbers // BLOCK if weights(format) != "max" or rounds(format) else 0
    return scales + (numbers // 2 if rounds(format) else 0)
