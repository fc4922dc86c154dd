"""What is in engine plans: a tiny FLUX and a tiny SDXL in every format. `bench_plans.py [CASE ...]`

Of every case the graph's matrix products and convolutions by the precision that they run in, as the installed builder lists
them, how many the graph has quantized, and the compute capabilities that the plan is for. A table is printed last. On two cores
of a CPU it takes two minutes; with TensorRT-RTX it needs no GPU.
"""

import sys

from tiny import bench

from diffopt.artifact import EnginePlan
from diffopt.errors import GateError
from diffopt.files.plan import EnginePlanFile
from diffopt.stages.build import BuilderView, build

CASES = {
    "flux none": None,
    "flux int8_sq": "int8_sq",
    "flux fp8": "fp8",
    "flux fp8 attention": "fp8",
    "flux nvfp4": "nvfp4",
    "flux nvfp4_svdquant": "nvfp4_svdquant",
    "flux mxfp8": "mxfp8",
    "flux int4_awq": "int4_awq",
    "flux w4a8_awq": "w4a8_awq",
    "sdxl int8": "int8",
    "sdxl int8_sq": "int8_sq",
    "sdxl fp8": "fp8",
}


def row(case: str) -> str:
    family, *_ = case.split()
    b = bench(family=family)
    context = b.context()
    graph = b.graph(CASES[case], dtype="float16", **({"mha": True} if case.endswith("attention") else {}))
    try:
        build.run(context, BuilderView(builder_optimization_level=3), graph)
    except GateError as e:
        return f"| {case} | | {e} | |"
    head = EnginePlanFile.read(EnginePlan(context.out, "plan").path)
    counts = ", ".join(f"{n} {p}" for p, n in (head.products or {}).items())
    return f"| {case} | {head.quantized_products} | {counts} | {', '.join(head.capabilities)} |"


def main() -> None:
    rows = [row(case) for case in sys.argv[1:] or CASES]
    print("\n| plan of | quantized in the graph | products | runs on |\n|---|---|---|---|\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
