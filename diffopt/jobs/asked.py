"""What the model's scheduler and tokenizer would refuse of the steps and prompts that are asked for: a line each."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from diffopt import models
from diffopt.errors import PlanError
from diffopt.groups.data import STEPS, Data
from diffopt.groups.train import trajectory
from diffopt.store.source import Source
from diffopt.view import Choices


def steps(choices: Choices, directory: Path) -> Iterator[str]:
    """The scheduler, and the numbers of denoising steps that it is asked for."""
    from diffopt.pipeline.scheduler import check_steps, plain, recorded, scheduler, too_many

    assert choices.model is not None
    wanted = {"calib.n_steps": choices.calib.n_steps} if choices.calib else {}
    wanted |= {"eval.steps": choices.eval.steps} if choices.eval else {}
    if choices.train and choices.train.data.synthetic:
        wanted["train.data.steps"] = choices.train.data.steps or STEPS
    if choices.train and choices.train.validation:
        wanted["train.validation.steps"] = choices.train.validation.steps
    if choices.train and (drawing := trajectory(choices.train)):
        wanted["train.distillation.trajectory.steps"] = drawing.steps
    try:
        config = recorded(directory)
    except (OSError, ValueError):  # opening it says so
        return
    if plain(config, choices.model.scheduler):
        yield from filter(None, (too_many(config, many, where) for where, many in wanted.items()))
        return
    try:
        own = scheduler(directory, choices.model.scheduler)
    except PlanError as e:
        yield str(e)
        return
    for where, many in wanted.items():
        try:
            check_steps(own, many, where)
        except PlanError as e:
            yield str(e)


def prompts(choices: Choices, directory: Path, local: Callable[[Source], Path | None]) -> Iterator[str]:
    """The tokenizer with the prompts, and how many of those that are trained on are left of those that validate."""
    from diffopt.pipeline.lengths import too_long

    model, train = choices.model, choices.train
    assert model is not None
    sets: dict[str, Sequence[str]] = {}
    if choices.calib:
        sets["calib.prompts"] = choices.calib.prompts.prompts[: choices.calib.size]
    if choices.eval:
        sets["eval.prompts"] = choices.eval.prompts.prompts[: choices.eval.size]
    if train:
        try:
            trained = _trained(choices, train.data, local)
        except PlanError as e:
            yield str(e)
            trained = None
        if trained is not None:
            sets["train.data.prompts" if train.data.synthetic else "train.data.source"] = trained
            held = train.validation.size if train.validation else 0
            if held >= len(trained):
                yield (
                    f"train.validation.size: leaves none of the data's {len(trained)} prompts to train on (got {held}); "
                    "lower it, or give more data"
                )
    if model.weights != "random" and not models.of(model).animates and model.long_prompts == "refuse":
        yield from filter(None, (too_long(directory, texts, model, where) for where, texts in sets.items()))


def _trained(choices: Choices, data: Data, local: Callable[[Source], Path | None]) -> Sequence[str] | None:
    """The prompts that are trained on, each once; None where they are not there. Reads no picture of one's own, only which
    there are and their captions."""
    from diffopt.data.imagefolder import ImageFolder

    if data.source is None:
        items = data.item_prompts(choices)
        return tuple(dict(zip(items.keys, items.prompts, strict=True)).values())
    folder = local(data.source)
    if folder is None:
        return None
    return tuple(dict.fromkeys(ImageFolder(folder, data.source.name, data.size, data.caption).captions))
