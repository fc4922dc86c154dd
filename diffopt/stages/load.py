"""load: pin the source, and read from it what later stages and the report say of the model."""

import json

from diffopt import models
from diffopt.artifact import Pipeline
from diffopt.errors import PlanError
from diffopt.groups.model import Dtype, Model
from diffopt.source import ModelSource
from diffopt.stage import Context, stage
from diffopt.view import View


class LoadView(View, of=Model):
    family: str
    source: ModelSource
    dtype: Dtype


@stage(version=1, when="model", probes=("numerics",))
def load(ctx: Context, model: LoadView) -> Pipeline:
    import diffusers
    from accelerate import init_empty_weights

    digest = ctx.digest(model.source)
    directory = ctx.locate(digest)
    index = json.loads((directory / "model_index.json").read_text())
    family = models.family(model.family)
    path = directory / family.backbone / "config.json"
    if not path.is_file():
        raise PlanError(f"model.source: has no {family.backbone}/config.json (got {model.source.name!r}); download it again")
    config = json.loads(path.read_text())
    with init_empty_weights():
        backbone = getattr(diffusers, family.backbone_class).from_config(config)
    pinned = {
        "source": digest,
        "family": model.family,
        "dtype": model.dtype,
        "components": {k: v[1] for k, v in index.items() if isinstance(v, list) and v[0]},
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "blocks": {name: len(getattr(backbone, name)) for name in family.blocks},
    }
    (ctx.out / "pipeline.json").write_text(json.dumps(pinned, indent=1))
