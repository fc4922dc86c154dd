"""The line of the builder's own program, trtexec or tensorrt_rtx, that builds the same plan.

There are no flags for precisions: the graph's types decide them, which TensorRT 11 takes for granted and no longer names.
"""

import shlex
from pathlib import Path

from diffopt.files.graph import Profile
from diffopt.graph.engine.options import Options

PROGRAM = {"tensorrt": "trtexec", "tensorrt_rtx": "tensorrt_rtx"}


def line(flavour: str, version: str, options: Options, graph: Path, plan: Path, profile: Profile | None) -> str:
    """For a shell; `graph` and `plan` as they are to stand in it."""
    words = [PROGRAM[flavour], f"--onnx={graph}", f"--saveEngine={plan}", "--skipInference"]
    if flavour == "tensorrt" and int(version.split(".")[0]) < 11:
        words.append("--stronglyTyped")
    words.append(f"--builderOptimizationLevel={options.level}")
    words += ["--refit"] if options.refit else []
    words += ["--allowWeightStreaming"] if options.weight_streaming else []
    words += [f"--memPoolSize=workspace:{options.workspace >> 20}M"] if options.workspace is not None else []
    for kind in ("min", "opt", "max") if profile else ():
        assert profile is not None
        shapes = (f"{name}:{'x'.join(map(str, shape[kind]))}" for name, shape in profile.items())
        words.append(f"--{kind}Shapes={','.join(shapes)}")
    return shlex.join(words)
