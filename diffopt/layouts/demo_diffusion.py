"""Where demoDiffusion of TensorRT's repository (demo/Diffusion, release 11.1) looks for a graph, and the command to run there.

Its FLUX pipeline finds a graph by demo_diffusion/path/resolve_path.py, that of SDXL by its own stable_diffusion_pipeline.py.
The names have what demoDiffusion would have calibrated with, so the command names its defaults: they say nothing of this graph.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OUTPUT = "latent"
"""What its pipelines call a graph's output."""
FORMATS: Mapping[str, Mapping[str | None, str]] = {
    "flux": {None: "", "fp8": "fp8", "nvfp4": "fp4"},
    "sdxl": {None: "", "int8": "int8", "int8_sq": "int8", "fp8": "fp8"},
}
"""By family and format of ours its own word; of FLUX it takes no INT8 (dd_argparse.py)."""
LEVEL = {"fp8": "4.0", "int8": "3.0"}
SIZE, PERCENTILE, ALPHA, STEPS = 32, "1.0", "0.8", 30


@dataclass(frozen=True)
class Place:
    file: str
    """Of the graph, within its --onnx-dir."""
    command: str


@dataclass(frozen=True)
class Asked:
    """What the command must say of the model."""

    family: str
    format: str | None
    dtype: str
    distilled: bool
    """FLUX whose guidance is an input (dev), or SDXL with guidance (xl-1.0)."""
    height: int
    width: int
    batch_size: int


def place(asked: Asked) -> Place:
    word = FORMATS[asked.family][asked.format]
    calibrated = f"c{SIZE}.p{PERCENTILE}.a{ALPHA}"
    if asked.family == "flux":
        version = "flux.1-dev" if asked.distilled else "flux.1-schnell"
        suffix = f"_{word}.l{LEVEL[word]}.bs2.{calibrated}" if word in LEVEL else f"_{word}" if word else ""
        file, script = f"FluxPipeline_{version}/transformer{suffix}/model_optimized.onnx", "demo_txt2img_flux.py"
    else:
        version = "xl-1.0" if asked.distilled else "xl-turbo"
        suffix = f"-{word}.l{LEVEL[word]}.bs2.s{STEPS}.{calibrated}" if word else ""
        file, script = f"unetxl{suffix}.opt/model.onnx", "demo_txt2img_xl.py"
    words = ["python3", script, "PROMPT", f"--version={version}", "--onnx-dir=DIRECTORY", f"--height={asked.height}"]
    words += [f"--width={asked.width}", f"--batch-size={asked.batch_size}", "--build-static-batch"]
    words += ["--bf16"] if asked.dtype == "bfloat16" else []
    words += [f"--{word}"] if word else []
    if word in LEVEL:
        words += [f"--quantization-level={LEVEL[word]}", f"--calibration-size={SIZE}"]
        words += [f"--quantization-percentile={PERCENTILE}", f"--quantization-alpha={ALPHA}"]
        words += [f"--denoising-steps={STEPS}"] if asked.family == "sdxl" else []
    return Place(file, shlex.join(words))


def rename_output(file: Path, old: str) -> None:
    """Give the output `old` of a finished graph demoDiffusion's name. Weights beside it stay where they are."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    for names in (names for node in model.graph.node for names in (node.input, node.output)):
        for i, name in enumerate(names):
            if name == old:
                names[i] = OUTPUT
    for value in model.graph.output:
        value.name = OUTPUT
    onnx.save(model, file)
