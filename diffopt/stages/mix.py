"""mix: a format for every layer, of the candidates: the least summed error that the budget allows."""

from diffopt.artifact import Mix, Pipeline, Sensitivity
from diffopt.errors import PlanError
from diffopt.files.layers import Layer
from diffopt.files.mix import MixedLayer, MixFile, UniformMix
from diffopt.files.pipeline import PipelineFile
from diffopt.files.sensitivity import SensitivityFile
from diffopt.formats.auto import FULL
from diffopt.groups.format import MixView
from diffopt.groups.model import BYTES
from diffopt.quantization import mixed_precision
from diffopt.quantization.layers import without
from diffopt.stage import Context, stage


@stage(version=1, when="format")
def mix(ctx: Context, format: MixView, pipeline: Pipeline, sensitivity: Sensitivity) -> Mix:
    budget, measured = format.budget, SensitivityFile.read(sensitivity.path)
    assert budget is not None
    plain = 8.0 * BYTES[PipelineFile.read(pipeline.path).dtype]
    named = {x.name for x in without([Layer(x.name, x.kind, ()) for x in measured.layers], format.exclude)}
    layers = [x for x in measured.layers if x.name in named]
    choices = [mixed_precision.options(x, format, plain) for x in layers]
    limits = mixed_precision.limits(budget, layers, plain)
    chosen = mixed_precision.choose(choices, limits)

    def costs(options: list[mixed_precision.Option]) -> tuple[float, float, float | None]:
        """Error, bits and time, as the file has them."""
        weights, products = sum(x.weights for x in layers), sum(x.products for x in layers)
        time = sum(o.time for o in options) / products if budget.gpu else None
        return sum(o.error for o in options), sum(o.bits for o in options) / weights, time

    def fits(options: list[mixed_precision.Option]) -> bool:
        return all(sum(getattr(o, x.cost) for o in options) <= x.most * (1 + mixed_precision.SLACK) for x in limits)

    uniform = {n: [next((o for o in c if o.format == n), c[-1]) for c in choices] for n in format.candidates}
    if all(o.format == FULL for o in chosen):
        raise PlanError(
            f"format.budget: leaves every layer in full precision (got {format.candidates}); lower it, or drop full "
            "from format.candidates"
        )
    error, bits, time = costs(chosen)
    MixFile(
        layers=tuple(MixedLayer(x.name, x.kind, o.format, x.weights, o.error) for x, o in zip(layers, chosen, strict=True)),
        error=error,
        bits=bits,
        time=time,
        bytes=round(sum(o.bits for o in chosen) / 8),
        plain_bytes=round(plain * sum(x.weights for x in layers) / 8),
        gpu=budget.gpu,
        budget=budget.model_dump(mode="json"),
        uniform={n: UniformMix(*costs(o), fits(o)) for n, o in uniform.items()},
    ).write(ctx.out)
