"""mix: a format for every layer, of the candidates: the least summed error that the budget allows.

`mix.json`, schema diffopt.mix/1:
    layers[].name, kind, format, weights, error   what each layer is to be; its error squared, relative to its output
    error, bits, bytes      of the mix: the sum of the errors, bits per weight, and bytes of all these weights
    plain_bytes             of the same weights in the model's precision
    time, gpu               estimated share of the products' time in 16 bits, where a GPU was named
    uniform.FORMAT          error, bits, time of that one format on every layer that it can take, and whether it `fits`
"""

import json
from typing import Any

from diffopt.artifact import Mix, Pipeline, Sensitivity
from diffopt.errors import PlanError
from diffopt.files.layers import Layer
from diffopt.files.pipeline import PipelineFile
from diffopt.formats.auto import FULL
from diffopt.groups.format import MixView
from diffopt.groups.model import BYTES
from diffopt.quantization import mixed_precision
from diffopt.quantization.layers import without
from diffopt.stage import Context, stage


@stage(version=1, when="format")
def mix(ctx: Context, format: MixView, pipeline: Pipeline, sensitivity: Sensitivity) -> Mix:
    budget, measured = format.budget, sensitivity.json("sensitivity.json")
    assert budget is not None
    plain = 8.0 * BYTES[PipelineFile.read(pipeline.path).dtype]
    named = {x.name for x in without([Layer(x["name"], x["kind"], ()) for x in measured["layers"]], format.exclude)}
    layers = [x for x in measured["layers"] if x["name"] in named]
    choices = [mixed_precision.options(x, format.candidates, plain, budget.gpu) for x in layers]
    limits = mixed_precision.limits(budget, layers, plain)
    chosen = mixed_precision.choose(choices, limits)

    def costs(options: list[mixed_precision.Option]) -> dict[str, Any]:
        weights, products = sum(x["weights"] for x in layers), sum(x["products"] for x in layers)
        return {
            "error": sum(o.error for o in options),
            "bits": sum(o.bits for o in options) / weights,
            "time": sum(o.time for o in options) / products if budget.gpu else None,
        }

    def fits(options: list[mixed_precision.Option]) -> bool:
        return all(sum(getattr(o, x.cost) for o in options) <= x.most * (1 + mixed_precision.SLACK) for x in limits)

    uniform = {n: [next((o for o in c if o.format == n), c[-1]) for c in choices] for n in format.candidates}
    if all(o.format == FULL for o in chosen):
        raise PlanError(
            f"format.budget: leaves every layer in full precision (got {format.candidates}); lower it, or drop full "
            "from format.candidates"
        )
    content = {
        "schema": "diffopt.mix/1",
        "layers": [
            {"name": x["name"], "kind": x["kind"], "format": o.format, "weights": x["weights"], "error": o.error}
            for x, o in zip(layers, chosen, strict=True)
        ],
        **costs(chosen),
        "bytes": round(sum(o.bits for o in chosen) / 8),
        "plain_bytes": round(plain * sum(x["weights"] for x in layers) / 8),
        "gpu": budget.gpu,
        "budget": budget.model_dump(mode="json"),
        "uniform": {n: {**costs(o), "fits": fits(o)} for n, o in uniform.items()},
    }
    (ctx.out / "mix.json").write_text(json.dumps(content, indent=1))
