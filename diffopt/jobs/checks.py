"""What is refused before anything runs: combinations that this machine or a runtime cannot do. One line each."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec

from diffopt import formats, models
from diffopt.caches import METHODS, Settings
from diffopt.caches.knob_search import KnobSearch
from diffopt.data.pictured import unfit
from diffopt.data.prompts import PromptSet, unreadable
from diffopt.errors import PlanError, suggestion
from diffopt.formats.auto import FULL
from diffopt.groups import Model, alternatives
from diffopt.groups.format import Budget, share
from diffopt.groups.gpu_rates import PEAK
from diffopt.groups.gpu_rates import share as rate
from diffopt.groups.lora_file import Shapes, fit, plain, shapes
from diffopt.groups.model import BYTES
from diffopt.jobs.component_checks import components
from diffopt.jobs.export_checks import exported
from diffopt.jobs.runtime_checks import benched, run
from diffopt.machine.environment import Environment, package
from diffopt.metrics import METRICS, SOURCES
from diffopt.metrics.weight_files import lacking, reads_texts
from diffopt.models.parts import Parts
from diffopt.runtimes import RUNTIMES
from diffopt.store.composed import ORIGINAL
from diffopt.view import Choices

TEXTS = ("text_encoder", "text_encoder_2")
"""Parts that adapters are trained for beside backbones; their layers are not known before they are built."""
TRACKERS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "comet_ml": "comet_ml",
    "aim": "aim",
    "mlflow": "mlflow",
    "clearml": "clearml",
    "dvclive": "dvclive",
    "swanlab": "swanlab",
    "trackio": "trackio",
}
"""accelerate's trackers, and the package of each."""


def check(choices: Choices, environment: Environment) -> None:
    """Raises PlanError with every reason why the choices cannot be carried out here."""
    if found := reasons(choices, environment):
        raise PlanError("\n".join(found))


def reasons(choices: Choices, environment: Environment) -> list[str]:
    """Why the choices cannot be carried out here, a line each."""
    return [
        *_source(choices),
        *_needed(choices),
        *_lora(choices),
        *_prompts(choices),
        *_format(choices),
        *components(choices, choices.model.origin.directory if choices.model else None),
        *_sense(choices),
        *_cache(choices),
        *_train(choices),
        *_data(choices),
        *exported(choices, environment),
        *_metrics(choices),
        *run(choices, environment),
        *benched(choices, environment),
        *_compare(choices),
    ]


def _source(choices: Choices) -> Iterator[str]:
    """What a local model's directory lacks, by its index and the headers of its weights; `load` tells it of the hub's."""
    model = choices.model
    if model is None or (directory := model.origin.directory) is None:
        return
    pretrained = model.weights == "pretrained"
    parts = Parts(directory, models.of(model), model.variant if pretrained else None, model.trust == "pickle")
    for what, advice in parts.problems(pretrained=pretrained):
        where = "architecture" if not pretrained and model.architecture else "base" if model.base else "source"
        yield f"model.{where}: {what} (got {model.origin.name!r}); {advice}"


def _needed(choices: Choices) -> Iterator[str]:
    """A package that a pretrained model is not drawn without."""
    model = choices.model
    needs = models.of(model).needs if model and model.weights == "pretrained" else None
    if model and needs and find_spec(needs) is None:
        yield (
            f"model: {model.family} is not drawn without the package {needs}, which its licence asks for (got none); "
            f"install it by `pip install 'diffopt[{needs.partition('_')[0]}]'`"
        )


def _lora(choices: Choices) -> Iterator[str]:
    """What the files' headers tell; `load` judges what must be converted to be matched, and what is on the hub."""
    model = choices.model
    if model is None or not model.lora:
        return
    family = models.of(model)
    if not family.lora:
        yield f"model.lora: diffusers has no LoRA loader for {family.pipeline} (got {model.lora[0].path.name!r}); drop it"
        return
    layers = _weights(model)
    for i, adapter in enumerate(model.lora):
        where, name = f"model.lora.{i}", adapter.path.name
        if adapter.backbone not in (None, *family.backbones):
            there = suggestion(adapter.backbone or "", family.backbones)
            yield f"{where}.backbone: {family.name} has no such backbone (got {adapter.backbone!r}); {there}"
            continue
        if adapter.path.local is None:
            continue
        try:
            keys = shapes(adapter.path.local)
        except ValueError as e:
            what, _, advice = str(e).partition("; ")
            yield f"{where}.path: {what} (got {name!r}); {advice}"
            continue
        if not any("lora" in k for k in keys):
            first = f", the first {next(iter(keys))}" if keys else ""
            yield f"{where}.path: holds no LoRA (got {name!r}: {len(keys)} tensors{first}); give the file of an adapter"
        elif magnitudes := [k for k in keys if "dora_scale" in k or "magnitude" in k]:
            yield (
                f"{where}.path: is a DoRA, whose magnitudes diffusers would leave out (got {name!r}: {len(magnitudes)} of "
                "them); give a plain LoRA, or a model that it was merged into"
            )
        elif layers and plain(keys, {*family.backbones, *TEXTS}):
            first, own = f"{family.backbones[0]}.", f"{adapter.backbone or family.backbones[0]}."
            named = {own + k.removeprefix(first) if k.startswith(first) else k: x for k, x in keys.items()}
            if problem := fit(named, layers | dict.fromkeys(TEXTS)).problem(name, len(keys)):
                yield f"{where}: {problem}"


def _weights(model: Model) -> dict[str, Shapes | None]:
    """Sizes of the layers of a local model's backbones, by their files' headers; empty where these do not tell."""
    directory = model.origin.directory if model.weights == "pretrained" else None
    found: dict[str, Shapes | None] = {}
    for name in models.of(model).backbones if directory else ():
        assert directory is not None
        own: dict[str, tuple[int, ...]] = {}
        if (directory / name / ORIGINAL).exists():  # whose layers have other names
            return {}
        for path in sorted((directory / name).glob("*.safetensors")):
            with suppress(ValueError):  # a broken model is said to be one where it is opened
                own |= shapes(path)
        found[name] = {k.removesuffix(".weight"): x for k, x in own.items() if k.endswith(".weight") and len(x) > 1}
    return {n: x for n, x in found.items() if x}


def _prompts(choices: Choices) -> Iterator[str]:
    """Models that animate take pictures, others texts, or texts with pictures."""
    if choices.model is None:
        return
    family = models.of(choices.model)
    for name, prompts, size in _sets(choices):
        where = prompts.where
        if family.animates and prompts.folder is None:
            yield f"{name}: {family.name} takes pictures, not texts (got {where}); give a directory of pictures"
        elif not family.animates and prompts.folder is not None and not family.pictures:
            yield f"{name}: {family.name} takes texts, not pictures (got {where}); give a file of texts"
        elif reason := _unfit(family, prompts):
            yield f"{name}: {reason}"
        for picture in (prompts.given().prompts if prompts.folder else ())[:size]:
            if reason := unreadable(picture):
                yield f"{name}: a picture cannot be read: {reason} (got {picture!r}); mend or remove it"
    if family.animates and choices.eval:
        for metric in (m for m in choices.eval.metrics if METRICS[m].of_text):
            yield f"eval.metrics: {metric} compares with a text, and {family.name} has none (got {metric}); leave it out"
    if family.pictures and choices.train and not choices.train.data.synthetic:
        source = choices.train.data.source
        yield (
            f"train.data.source: {family.name} takes pictures with its prompts, and a data set of one's own has none "
            f"(got {source.name if source else None!r}); set train.data=synthetic with train.data.prompts"
        )
    if family.single:
        yield from _batches(choices, family.name)


def _unfit(family: models.Family, prompts: PromptSet) -> str | None:
    """Of a family that is known, whether the pictures of its texts are those that it takes."""
    if family.animates or family.name == models.AUTO.name:
        return None
    return unfit(family.name, tuple(family.pictures), prompts.roles, prompts.where)


def _sets(choices: Choices) -> Iterator[tuple[str, PromptSet, int]]:
    """The sets of prompts: their field, and how many of them are used."""
    for name, group in {"calib": choices.calib, "eval": choices.eval}.items():
        if group:
            yield f"{name}.prompts", group.prompts, group.size
    if choices.train and choices.train.data.synthetic and choices.model and not models.of(choices.model).animates:
        own = choices.train.data.item_prompts(choices)
        yield "train.data.prompts", own, len(own)


def _batches(choices: Choices, family: str) -> Iterator[str]:
    """Of a pipeline that takes one prompt a call."""
    asked = {f"{n}.batch_size": g.batch_size for n in ("calib", "eval", "export") if (g := getattr(choices, n))}
    if choices.train and choices.train.data.synthetic:
        asked["train.data.batch_size"] = choices.train.data.batch
    for name, many in asked.items():
        if many and many > 1:
            yield f"{name}: diffusers' pipeline of {family} takes one prompt a call (got {many}); set {name}=1"


def _format(choices: Choices) -> Iterator[str]:
    if choices.format and choices.format.quantize_mha and not formats.method(choices.format.name).attention:
        yield (
            f"format.quantize_mha: {choices.format.name} has no quantized attention (got true); "
            "drop it, or choose format=fp8 or format=nvfp4"
        )
    if choices.format and choices.format.inputs == "full" and choices.eval and choices.eval.runtime == "native":
        yield (
            "format.inputs: no kernel multiplies NVFP4 by 16 bits (got full, eval.runtime=native); set format.inputs=max, or "
            "eval.runtime=torch"
        )
    if choices.format and choices.format.quantize_mha and choices.model and not models.of(choices.model).attention:
        yield (
            f"format.quantize_mha: Model-Optimizer cannot quantize the attention of {choices.model.family} (got true); drop it"
        )


def _sense(choices: Choices) -> Iterator[str]:
    sense, picked = choices.sense, choices.format
    if sense and choices.calib and sense.size > choices.calib.size:
        yield f"sense.size: is more than the calib.size={choices.calib.size} prompts (got {sense.size}); lower it"
    if sense and picked and picked.name == "auto":
        for name in (n for n in picked.candidates if n not in (*sense.formats, "full")):
            yield (
                f"format.candidates: {name} is not tried by sense.formats={sense.formats} (got {picked.candidates}); "
                "add it there, or drop it here"
            )
    if picked and picked.name == "auto" and picked.budget and choices.model:
        yield from _budget(picked.budget, picked.candidates, 8.0 * BYTES[choices.model.dtype])
    if picked and picked.name == "auto" and picked.budget and picked.budget.gpu:
        gpu = picked.budget.gpu
        for name in (n for n in picked.candidates if n not in PEAK[gpu]):
            yield (
                f"format.candidates: the tensor cores of {gpu} have no {name} (got {picked.candidates}); drop it, "
                "or set another format.budget.gpu"
            )


def _budget(budget: Budget, candidates: Sequence[str], plain: float) -> Iterator[str]:
    """Limits that no mix of the candidates keeps, whatever the layers; and those that leave all of them as they are."""
    named = [n for n in candidates if n != FULL]
    bits = min(formats.method(n).bits(formats.method(n).block_size) for n in named)
    limits = {"bits": (budget.bits, bits, plain, "")}
    if isinstance(budget.bytes, str):
        limits["bytes"] = (100 * share(budget.bytes), 100 * bits / plain, 100.0, "%")
    if budget.time and budget.gpu:
        there = [rate(budget.gpu, n) for n in named if n in PEAK[budget.gpu]]
        limits["time"] = (100 * share(budget.time), 100 * min(there, default=0.0), 100.0, "%")
    set_ = {name: x for name, x in limits.items() if x[0] is not None}
    for name, (most, least, _, sign) in set_.items():
        if most is not None and most < least * (1 - 1e-9):
            yield (
                f"format.budget.{name}: no mix of the candidates is so small, the least is {least:.4g}{sign} "
                f"(got {most:.4g}{sign}); raise it, or add a smaller one to format.candidates"
            )
    whole = all(most is not None and most >= full for most, _, full, _ in set_.values())
    if FULL in candidates and set_ and whole and not isinstance(budget.bytes, int):
        yield (
            f"format.budget: leaves every layer in full precision (got {list(candidates)}); lower it, or drop full "
            "from format.candidates"
        )


def _cache(choices: Choices) -> Iterator[str]:
    if choices.cache is None or choices.model is None:
        return
    assert isinstance(choices.cache, Settings)
    method, family = METHODS[choices.cache.method], models.of(choices.model)
    if reason := method.supports(family):
        other = "choose cache=cachify, or drop the cache" if family.cached and method.name != "cachify" else "drop the cache"
        yield f"cache: {reason} (got cache={method.name}); {other}"
    if method.package and package(method.package[0]) is None:
        yield f"cache: {method.package[0]} is not installed (got cache={method.name}); `{method.package[1]}`"
    if unfit := choices.cache.unfit(family):
        yield f"cache.{unfit}"
    elif choices.cache.search:
        yield from _search(choices, choices.cache, choices.cache.search)
    elif choices.eval and (misfit := choices.cache.misfit(family, choices.eval.steps)):
        yield f"cache.{misfit}"


def _search(choices: Choices, cache: Settings, search: KnobSearch) -> Iterator[str]:
    """What the search of a knob needs of the evaluation."""
    assert choices.model is not None
    eval, model = choices.eval, choices.model
    if eval is None:
        yield "cache.search: is judged on the evaluation's pictures (got eval=null); choose eval=OPTION, or drop cache.search"
        return
    if model.weights == "random":
        yield (
            "cache.search: random weights draw noise, which has no quality (got a search); drop it, or set "
            "model.weights=pretrained"
        )
    if search.prompts and search.prompts > eval.size:
        yield f"cache.search.prompts: is more than the eval.size={eval.size} prompts (got {search.prompts}); lower it"
    family = models.of(model)
    for metric in (METRICS[name] for name in search.floor):
        unfit = "compares with a text, and {} has none" if metric.of_text and family.animates else ""
        unfit = "judges videos, {} draws pictures" if metric.of_video and family.frame_step is None else unfit
        if unfit:
            yield f"cache.search.floor: {metric.name} {unfit.format(family.name)} (got {metric.name}); drop it"
        for source in (s for s in metric.needs if getattr(eval, s) is None):
            yield f"cache.search.floor: {metric.name} needs eval.{source} (got None); give {SOURCES[source]}"
    low, high = cache.ends(eval.steps)
    if low >= high:
        yield (
            f"cache.search.low: leaves nothing up to {high:g}, the last of the run's {eval.steps} steps (got {low:g}); "
            "lower it, or raise eval.steps"
        )
        return
    for name, end in (("low", low), ("high", high)):
        if misfit := cache.turned(end).misfit(family, eval.steps):
            what = misfit.partition(" (got ")[0]
            yield f"cache.search.{name}: with {what} (got {end:g}); give another, or raise eval.steps"


def _train(choices: Choices) -> Iterator[str]:
    train = choices.train
    if train is None or choices.model is None:
        return
    family = models.of(choices.model)
    if family.conditions is None:
        found = choices.model.found
        why = f": {found.reasons['train']}" if found and "train" in found.reasons else ""
        yield f"train: how {family.name} is trained is not known here{why} (got train=...); drop train"
    for name in train.trackers:
        if name not in TRACKERS:
            yield f"train.trackers: accelerate has no such tracker (got {name!r}); {suggestion(name, TRACKERS)}"
        elif find_spec(TRACKERS[name]) is None:
            yield f"train.trackers: {name} is not installed (got {name!r}); pip install {TRACKERS[name]}, or leave it out"
    if train.optimizer.endswith("8bit") and find_spec("torchao") is None:
        yield (
            f"train.optimizer: {train.optimizer} needs the package torchao (got {train.optimizer!r}); "
            "pip install 'diffopt[train8bit]', or set train.optimizer=adamw"
        )


def _data(choices: Choices) -> Iterator[str]:
    source = choices.train.data.source if choices.train else None
    if source and find_spec("datasets") is None:
        yield (
            f"train.data.source: pictures are read by the package datasets, which is not there (got {source.name!r}); "
            "pip install 'diffopt[datasets]'"
        )


def _metrics(choices: Choices) -> Iterator[str]:
    if choices.eval is None:
        return
    if choices.model and choices.model.weights == "random" and choices.eval.metrics:
        eval, name = choices.eval, choices.format.name if choices.format else None
        timed = eval.bench or (eval.latency and name in RUNTIMES[eval.runtime].kernels)
        yield (
            f"eval.metrics: random weights draw noise, which has no quality (got {', '.join(eval.metrics)}); "
            f"set {'eval.metrics=[] for times alone' if timed else 'eval=null'}, or model.weights=pretrained"
        )
    if choices.model and models.of(choices.model).frame_step is None:
        for metric in (m for m in choices.eval.metrics if METRICS[m].of_video):
            yield f"eval.metrics: {metric} judges videos, {choices.model.family} draws pictures (got {metric}); leave it out"
    yield from _scorers(choices)


def _scorers(choices: Choices) -> Iterator[str]:
    """Metrics that the pictures are too small for, or whose models are no such models; those on the hub are left to scoring."""
    eval, model = choices.eval, choices.model
    assert eval is not None
    asked = dict.fromkeys(eval.metrics, "eval.metrics")
    if choices.cache and isinstance(choices.cache, Settings) and choices.cache.search:
        asked |= {name: "cache.search.floor" for name in choices.cache.search.floor if name not in asked}
    metrics = {name: METRICS[name] for name in asked}
    for name, where in asked.items():
        if model and min(model.height, model.width) < metrics[name].smallest:
            yield (
                f"{where}: {name} needs pictures of {metrics[name].smallest} pixels a side and more, and these have "
                f"{model.width} x {model.height} (got {name}); leave it out"
            )
    for source in dict.fromkeys(s for m in metrics.values() for s in m.needs):
        given = getattr(eval, source)
        if given is None or given.directory is None:
            continue
        if reason := lacking(source, given.directory):
            yield f"eval.{source}: {reason}"
        elif source == "clip" and not reads_texts(given.directory):
            for name in (n for n, m in metrics.items() if m.of_text and source in m.needs):
                yield f"eval.clip: {name} needs a model with a text encoder (got {given.name!r}); give {SOURCES[source]}"


def _compare(choices: Choices) -> Iterator[str]:
    for name in choices.eval.compare if choices.eval else ():
        if reason := alternatives.ALTERNATIVES[name].unfit(choices):
            yield f"eval.compare: {reason} (got {name}); leave it out"
