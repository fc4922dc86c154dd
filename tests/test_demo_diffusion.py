"""Graphs with demoDiffusion's names: its folders, its output, the command to run there."""

from typing import Any

import onnx
import pytest
import torch
from tiny import Bench, bench

from diffopt.artifact import OnnxGraph
from diffopt.files.graph import OnnxGraphFile
from diffopt.layouts.demo_diffusion import Asked, place
from diffopt.stages.export import GraphView, SizeView, export

CALIBRATED = "bs2.c32.p1.0.a0.8"


def asked(family: str = "flux", format: str | None = "fp8", distilled: bool = True, dtype: str = "bfloat16") -> Asked:
    return Asked(family, format, dtype, distilled, 1024, 768, 1)


@pytest.mark.parametrize(
    ("of", "file"),
    [
        (asked(), f"FluxPipeline_flux.1-dev/transformer_fp8.l4.0.{CALIBRATED}/model_optimized.onnx"),
        (asked(format="nvfp4"), "FluxPipeline_flux.1-dev/transformer_fp4/model_optimized.onnx"),
        (asked(format=None, distilled=False), "FluxPipeline_flux.1-schnell/transformer/model_optimized.onnx"),
        (asked("sdxl", "int8_sq"), "unetxl-int8.l3.0.bs2.s30.c32.p1.0.a0.8.opt/model.onnx"),
        (asked("sdxl", None), "unetxl.opt/model.onnx"),
    ],
)
def test_a_graph_stands_where_its_pipeline_looks_for_it(of: Asked, file: str) -> None:
    assert place(of).file == file


def test_the_command_says_what_the_name_says() -> None:
    words = place(asked("sdxl", "int8", dtype="float16")).command.split()
    assert words[:4] == ["python3", "demo_txt2img_xl.py", "PROMPT", "--version=xl-1.0"]
    assert {"--int8", "--quantization-level=3.0", "--calibration-size=32", "--denoising-steps=30", "--width=768"} <= {*words}
    assert "--bf16" not in words
    assert {"--fp4", "--bf16"} <= {*place(asked(format="nvfp4")).command.split()}
    assert "--version=xl-turbo" in place(asked("sdxl", None, distilled=False)).command


def test_a_graph_for_it_has_its_output_and_computes_the_same() -> None:
    import onnxruntime

    b, context = bench(), bench().context()
    write(b, context)
    head = OnnxGraphFile.read(OnnxGraph(context.out, "graph").path)
    assert (
        head.file == f"FluxPipeline_flux.1-{'dev' if 'guidance' in head.inputs else 'schnell'}/transformer/model_optimized.onnx"
    )
    path = context.out / head.file
    onnx.checker.check_model(onnx.load(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == [head.output] == ["latent"]
    plain = onnxruntime.InferenceSession(str(b.graph(None).path / "model.onnx"), providers=["CPUExecutionProvider"])
    torch.manual_seed(0)
    given = {n: torch.rand(x.shape).numpy() for n, x in head.inputs.items()}
    assert (session.run(None, given)[0] == plain.run(None, given)[0]).all()


def write(b: Bench, context: Any) -> None:
    size = SizeView(**{n: getattr(b.call, n) for n in SizeView.model_fields})
    view = GraphView(opset=20, batch_size=1, max_batch_size=None, high_precision_dtype=None, target="demo_diffusion")
    export.run(context, size, view, b.pipeline(), None)


REFUSED = [
    (
        ("+recipe=sd35_fp8", "export.target=demo_diffusion"),
        "export.target: demoDiffusion takes no graph of sd3 from here, since",
    ),
    (("+recipe=flux_int8", "export.target=demo_diffusion"), "export.target: demoDiffusion takes no int8_sq of flux"),
    (
        ("+recipe=flux_fp8", "export.target=demo_diffusion", "export=tensorrt"),
        "export.target: demoDiffusion builds its own plan",
    ),
    (
        ("+recipe=quickstart", "format=fp8", "calib=emoji", "export.target=demo_diffusion"),
        "export.target: a graph with demoDiff",
    ),
]


@pytest.mark.parametrize(("chosen", "said"), REFUSED, ids=[c[0].partition("=")[2] for c, _ in REFUSED])
def test_what_it_does_not_take_is_refused(plan: Any, chosen: tuple[str, ...], said: str) -> None:
    from diffopt.errors import PlanError

    with pytest.raises(PlanError) as caught:
        plan(*chosen)
    assert any(line.startswith(said) for line in str(caught.value).splitlines())
