"""How to load an artifact that was copied out of the store: at most five lines of Python for each kind.

They need nothing of diffopt but where a packed backbone is read.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from diffopt import models
from diffopt.artifact import CalibStats, Checkpoint, DeployedCheckpoint, EnginePlan, NativeCheckpoint, OnnxGraph
from diffopt.cli.modelopt_file import FILE, Origin
from diffopt.files.graph import OnnxGraphFile
from diffopt.files.images import ImagesFile
from diffopt.files.native import NativeFile
from diffopt.files.pipeline import PipelineFile
from diffopt.files.plan import EnginePlanFile
from diffopt.graph.engine.command import line
from diffopt.graph.engine.options import Options
from diffopt.machine import environment
from diffopt.runtimes import RUNTIMES
from diffopt.store.entry import Entry

LINES = 5
LATEST = "11.4"
"""The version of TensorRT whose command is told where none is installed."""


def lines(entry: Entry, directory: Path, origin: Origin | None) -> tuple[list[str], str]:
    """The code, and a remark on it, which may be empty. `origin` is what a checkpoint or its packed weights were made of."""
    if entry.kind == Checkpoint.kind and (directory / FILE).is_file() and origin:
        return _checkpoint(directory, origin)
    if entry.kind == OnnxGraph.kind:
        return _graph(directory)
    if entry.kind == EnginePlan.kind:
        return _plan(directory)
    if entry.kind == NativeCheckpoint.kind:
        return _native(directory, origin)
    if (directory / ImagesFile.NAME).is_file():
        return _pictures(directory)
    return _files(entry, directory)


def by_hand(entry: Entry, directory: Path) -> list[str]:
    """Commands of other programs that build or run the same, where there are any."""
    if entry.kind == EnginePlan.kind:
        return [*EnginePlanFile.read(directory).commands]
    if entry.kind != OnnxGraph.kind:
        return []
    head = OnnxGraphFile.read(directory)
    if head.command:
        return [head.command.replace("DIRECTORY", shlex.quote(str(directory)))]
    builder = environment.tensorrt() or {"flavour": "tensorrt", "version": LATEST}
    found = []
    for folder in [directory / name for name in head.backbones] if len(head.backbones) > 1 else [directory]:
        for part in OnnxGraphFile.read(folder).parts:
            file = folder / part.file
            options = Options(level=3)
            plan = file.with_suffix(".plan")
            found.append(line(builder["flavour"], builder["version"], options, file, plan, part.profile))
    return found


def _of(name: str, backbone: str, source: str, dtype: str, random: bool) -> str:
    """An expression that is a plain backbone: of its config alone where its weights were random."""
    if random:
        return f"{name}.from_config({name}.load_config({source}, subfolder={backbone})).to(torch.{dtype})"
    return f"{name}.from_pretrained({source}, subfolder={backbone}, torch_dtype=torch.{dtype})"


def source_of(origin: Origin) -> str:
    """What `from_pretrained` takes: a directory, or a repository of the hub at its commit."""
    digest = PipelineFile.read(origin.pipeline.path).source
    if digest.startswith("hub:"):
        repository, _, commit = digest.removeprefix("hub:").partition("@")
        return f"{_text(repository)}, revision={_text(commit)}"
    return _text(origin.sources.locate(digest))


def _checkpoint(directory: Path, origin: Origin) -> tuple[list[str], str]:
    pinned = PipelineFile.read(origin.pipeline.path)
    name, random = models.of(pinned).backbone_class, pinned.weights == "random"
    several = len(pinned.backbones) > 1
    backbone = "name" if several else _text(pinned.backbones[0])
    plain = _of(name, backbone, source_of(origin), pinned.dtype, random)
    if several:
        plain = f"torch.nn.ModuleDict({{name: {plain} for name in {pinned.backbones}}})"
    remark = "The backbone is the plain one: the adapters that were fused are in the file." if pinned.lora else ""
    return [
        "import torch, modelopt.torch.opt as mto, modelopt.torch.quantization",
        f"from diffusers import {name}",
        f"backbone = {plain}.eval()",
        f"mto.restore(backbone, {_text(directory / FILE)})",
    ], remark


def _graph(directory: Path) -> tuple[list[str], str]:
    head = OnnxGraphFile.read(directory)
    folders = [directory / name for name in head.backbones] if len(head.backbones) > 1 else [directory]
    files = {f: [f / part.file for part in OnnxGraphFile.read(f).parts] for f in folders}
    runs = head.format in RUNTIMES["onnxruntime"].kernels and "bfloat16" not in {i.dtype for i in head.inputs.values()}
    found = [str(p) for each in files.values() for p in each]
    if not runs:
        remark = f"onnxruntime has no kernels for {head.format or 'its types'}; TensorRT and TensorRT-RTX build a plan of it."
        return ["import onnx", f"graphs = [onnx.load(file) for file in {found}]"], remark
    if len(found) > 1:
        return [
            "import onnxruntime",
            f"files = {found}",
            'sessions = [onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in files]',
        ], f"How the parts go together stands in {OnnxGraphFile.NAME}." if len(files) == 1 else ""
    return [
        "import json, numpy, onnxruntime",
        f'session = onnxruntime.InferenceSession({_text(found[0])}, providers=["CPUExecutionProvider"])',
        f'inputs = json.load(open({_text(directory / OnnxGraphFile.NAME)}))["inputs"]',
        'feeds = {name: numpy.zeros(x["shape"], x["dtype"]) for name, x in inputs.items()}',
        "(output,) = session.run(None, feeds)",
    ], ""


def _plan(directory: Path) -> tuple[list[str], str]:
    head = EnginePlanFile.read(directory)
    found = sorted(directory.rglob("*.plan"))
    first = _text(found[0])
    more = f" There are {len(found)}; `{EnginePlanFile.NAME}` says how they go together." if len(found) > 1 else ""
    return [
        "import tensorrt" if head.builder == "tensorrt" else f"import {head.builder} as tensorrt",
        "runtime = tensorrt.Runtime(tensorrt.Logger())",
        f'engine = runtime.deserialize_cuda_engine(open({first}, "rb").read())',
        "print([engine.get_tensor_name(i) for i in range(engine.num_io_tensors)])",
    ], f"Needs a GPU: {head.target}.{more}"


def _native(directory: Path, origin: Origin | None) -> tuple[list[str], str]:
    head = NativeFile.read(directory)
    several = len(head.backbones) > 1
    read = f"diffopt.load({_text(directory)})"
    if origin is None:
        return ["import diffopt", f"backbone = {read}"], "The rest of the pipeline is the model's that it was made from."
    pipeline = models.of(PipelineFile.read(origin.pipeline.path)).pipeline
    place = f"**{read}" if several else f"{head.backbones[0]}={read}"
    own = pipeline in _diffusers()
    remark = "" if own else f"The rest of the pipeline is that of {source_of(origin)}."
    code = [
        "import diffopt, torch",
        f"from diffusers import {pipeline}",
        f"pipe = {pipeline}.from_pretrained({source_of(origin)}, {place}, torch_dtype=torch.{head.dtype})",
        'pipe.to("cuda" if torch.cuda.is_available() else "cpu")',
    ]
    return (code if own else ["import diffopt", f"backbone = {read}"]), remark


def _diffusers() -> Any:
    import diffusers

    return {*dir(diffusers)}


def _pictures(directory: Path) -> tuple[list[str], str]:
    return [
        "import json",
        "from PIL import Image",
        f'rows = json.load(open({_text(directory / ImagesFile.NAME)}))["images"]',
        f'pictures = [Image.open({_text(directory)} + "/" + row["file"]) for row in rows]',
        'print([(row["prompt"], row["seed"]) for row in rows[:3]])',
    ], ""


def _files(entry: Entry, directory: Path) -> tuple[list[str], str]:
    """Of kinds that are tensors and JSON."""
    names = sorted(entry.record["files"])
    tensors = [n for n in names if n.endswith(".safetensors")]
    texts = [n for n in names if n.endswith(".json") and not n.endswith(".index.json")]
    code = []
    if tensors:
        files = [str(directory / n) for n in tensors]
        code += ["from safetensors.torch import load_file", f"tensors = [load_file(file) for file in {files}]"]
    if texts:
        code += ["import json", f"contents = [json.load(open(file)) for file in {[str(directory / n) for n in texts]}]"]
    remark = {
        Checkpoint.kind: f"Only what differs from the model; without --bare there is a {FILE} that mto.restore reads.",
        DeployedCheckpoint.kind: "In the layout of another program, which deploy.json tells of; these are its tensors.",
        CalibStats.kind: "The absolute maximum of every channel of every quantizer's input, by its name.",
    }.get(entry.kind, "")
    return code, remark


def _text(value: Any) -> str:
    """A string of Python's, in double quotes."""
    return json.dumps(str(value), ensure_ascii=False)
