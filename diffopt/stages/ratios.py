"""ratios: MagCache's ratios of magnitudes, measured on the full-precision model in the evaluation's denoising steps."""

from typing import Any, Self

from diffopt.artifact import EvalEmbeddings, MagRatios, Pipeline
from diffopt.data.prompts import Prompts
from diffopt.files.pipeline import PipelineFile
from diffopt.files.ratios import MagRatiosFile
from diffopt.groups import CallView, Eval
from diffopt.groups.cache import Cache
from diffopt.stage import Context, stage
from diffopt.view import Choices, Group, View


class RatiosView(View, of=Cache):
    """Nothing but that they are wanted: a sweep over what uses them measures once."""

    method: str

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        return frozenset({"method", "ratios", "prompts"})


class FewView(View, of=Eval):
    """The first prompts of the evaluation, as many as `cache.prompts` says, and its denoising steps."""

    prompts: Prompts
    steps: int

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        from diffopt.caches.mag_cache import MagCache

        assert isinstance(group, Eval)
        assert isinstance(choices.cache, MagCache)
        many = min(choices.cache.prompts, group.size)
        return [cls(prompts=group.prompts.part(0, many), steps=group.steps)]


@stage(version=1, when="cache", probes=("numerics",))
def ratios(
    ctx: Context, model: CallView, cache: RatiosView, eval: FewView, pipeline: Pipeline, texts: EvalEmbeddings, seed: int
) -> MagRatios:
    import numpy as np

    from diffopt.caches.magnitudes import measured
    from diffopt.caches.target import Target
    from diffopt.pipeline.draw import draw
    from diffopt.pipeline.open import family_of, open_denoiser
    from diffopt.pipeline.texts import load, singly

    pipe, family = open_denoiser(ctx, pipeline), family_of(pipeline)
    target = Target(pipe, family, {name: getattr(pipe, name) for name in PipelineFile.read(pipeline.path).backbones})
    many = len(eval.prompts)
    with measured(target) as runs, ctx.progress(many * eval.steps) as tick:
        for i, text in enumerate(singly(load(texts, ctx.device), many)):
            draw(pipe, text, [seed + i], eval.steps, family.arguments(model), decode=False, on_step=tick)

    def over_prompts(of: Any) -> dict[str, dict[str, list[float]]]:
        return {
            backbone: {call: [float(x) for x in of([run[backbone][call] for run in runs])] for call in calls}
            for backbone, calls in runs[0].items()
        }

    mean = over_prompts(lambda x: np.mean(x, 0))
    deviation = over_prompts(lambda x: np.std(x, 0, ddof=min(1, len(x) - 1)))
    MagRatiosFile(many, eval.steps, mean, deviation).write(ctx.out)
