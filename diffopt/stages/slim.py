"""slim: text encoders with their weights in fewer bits, as `format.components` asks, as transformers loads them."""

from diffopt.artifact import Components, Pipeline
from diffopt.files.components import ComponentsFile
from diffopt.groups.format import ComponentsView, slims
from diffopt.stage import Context, stage


@stage(version=1, when="format", only=slims, probes=("numerics", "slimming"))
def slim(ctx: Context, format: ComponentsView, pipeline: Pipeline) -> Components:
    from diffopt.errors import GateError
    from diffopt.machine.environment import SLIMMING, package
    from diffopt.machine.output import to_log
    from diffopt.pipeline import components

    with to_log():
        found = components.write(ctx, pipeline, {n: f for n, f in format.components.items() if f})
    if idle := next((n for n, c in found.items() if not c.layers), None):
        raise GateError(f"format.components.{idle}: none of its layers is quantized (got {found[idle].format}); drop it")
    versions = {n: package(n) or "" for n in ("torch", "transformers", *SLIMMING)}
    ComponentsFile(found, versions).write(ctx.out)
