"""The model card, README.md of a folder: the hub's front matter, and what is known of the weights, each figure from a run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from diffopt.files.metrics import MetricResult
from diffopt.groups.format import PACKAGES
from diffopt.report.run_directory import Run
from diffopt.shipping import findings, loading_code, private
from diffopt.shipping.consumers import SMOOTHED
from diffopt.shipping.evidence import Evidence
from diffopt.shipping.licence import OTHER
from diffopt.shipping.markdown import cell, table
from diffopt.shipping.samples import Sample
from diffopt.shipping.subject import LABELS, Subject
from diffopt.text import size, with_interval

LIBRARY = {"comfyui": "diffusion-single-file"}
"""The hub's name of the library by `export.kind`, where it is another than diffusers."""


def card(subject: Subject, evidence: Sequence[Evidence], samples: Sequence[Sample], run: Run | None) -> str:
    """Markdown with front matter. `run` is the newest that has the checkpoint, scored or not, where there is one."""
    parts = [
        _what(subject, evidence, run),
        findings.section(subject, evidence),
        _samples(samples, evidence),
        _made(subject, evidence, run),
        loading_code.section(subject),
        ["## Licence", "", subject.licence.line],
    ]
    body = "\n\n".join("\n".join(lines) for lines in (list(p) for p in parts) if lines)
    found = ModelCard(f"---\n{_data(subject, evidence).to_yaml()}\n---\n\n{body}\n")
    return str(found)


def _data(subject: Subject, evidence: Sequence[Evidence]) -> ModelCardData:
    licence = subject.licence
    results = [r for x in evidence[:1] for r in _results(subject, x)]
    name = licence.name or ("base-model" if licence.id == OTHER else None)
    return ModelCardData(
        license=licence.id,
        license_name=name,
        license_link=licence.link,
        base_model=subject.hub[0] if subject.hub else None,
        base_model_relation="quantized" if subject.hub else None,
        library_name=LIBRARY.get(subject.way.kind, "diffusers"),
        pipeline_tag=subject.task,
        tags=[
            "diffopt",
            "quantized",
            subject.pinned.family,
            *subject.formats,
            *(["simulated"] if _simulated(evidence) else []),
        ],
        model_name=subject.title if results else None,
        eval_results=results or None,
    )


def _simulated(evidence: Sequence[Evidence]) -> bool:
    return bool(evidence and evidence[0].images.simulated)


def _results(subject: Subject, evidence: Evidence) -> Iterator[EvalResult]:
    """The newest run's, as the hub's widget shows them: the interval stands in the metric's name. None of weights that compute
    with inputs that are not rounded, which nobody scored."""
    if evidence.score is None or subject.way.kind == "diffusers":
        return
    about = evidence.run.config["eval"]
    name = PurePosixPath(private.text(str(about.get("prompts") or "prompts"))).name
    for key, metric in evidence.score.metrics.items():
        yield EvalResult(
            task_type=subject.task,
            dataset_type="prompts",
            dataset_name=f"{len(evidence.score.prompts)} prompts of {name}",
            metric_type=key,
            metric_name=_name(metric),
            metric_value=round(metric.candidate.mean, 6),
        )


def _name(metric: MetricResult) -> str:
    said = with_interval(metric.candidate, metric.unit)
    against = "" if metric.reference else " to full precision"
    return f"{metric.title}{against}: {said}, n={metric.candidate.n}"


def _what(subject: Subject, evidence: Sequence[Evidence], run: Run | None) -> Iterator[str]:
    base = subject.model
    if subject.hub:
        base = f"[{subject.hub[0]}](https://huggingface.co/{subject.hub[0]}/tree/{subject.hub[1]})"
    yield f"# {subject.title}"
    yield ""
    yield f"The denoising network of {base} with {len(subject.head.layers)} of its layers in {subject.format}, the others in"
    yield f"{subject.pinned.dtype}. Written by `diffopt store export --as {subject.way.name}`: {subject.way.about}."
    yield from _kept(subject)
    if subject.slim:
        names = " and ".join(f"{n} in {LABELS.get(f, f)}" for n, f in subject.slim.items())
        by = " and ".join(sorted({PACKAGES[f] for f in subject.slim.values()}))
        yield f"Its text encoders' weights are kept in fewer bits, {names}: transformers loads them with {by} installed."
    if subject.pinned.weights == "random":
        yield ""
        yield "**The base model's weights were random: this is good for timing alone, and draws nothing.**"
    if subject.pinned.lora:
        names = ", ".join(f"{cell(private.text(a.name).rpartition('/')[2])} at scale {a.scale:g}" for a in subject.pinned.lora)
        yield f"Fused into it before: {names}."
    yield ""
    share = subject.bytes / subject.source_bytes
    yield f"The network takes {size(subject.bytes)}, {share:.1%} of the {size(subject.source_bytes)} in {subject.pinned.dtype}."
    if not evidence:
        yield ""
        yield from _unscored(subject, run)


def _kept(subject: Subject) -> Iterator[str]:
    """Which weights they are beside those that were scored."""
    kind, dtype = subject.way.kind, subject.pinned.dtype
    if kind == "modelopt":
        yield f"The weights are the full-precision ones in {dtype}, and beside them are the quantizers that round weights and"
        yield "inputs: with Model-Optimizer diffusers computes bit for bit what was simulated, without any speed of the format."
    elif kind == "diffusers":
        yield f"Its weights were rounded once, and are written in {dtype}: the format's quality without its size. They are"
        scaled = SMOOTHED & {*subject.formats}
        yield "those that were scored" + (
            " but for their last bits, the inputs' scales in them." if scaled else ", bit for bit."
        )
        yield "Inputs are not rounded here, as they were for the figures below."


def _unscored(subject: Subject, run: Run | None) -> Iterator[str]:
    """With which command it can be."""
    yield "**It was not scored.** No run that the store knows has drawn a picture with this checkpoint. A recipe's `eval` does:"
    yield ""
    kind = subject.way.kind if subject.way.artifact else "huggingface"
    picks = f"diffopt model=OPTION format={subject.head.format} calib=OPTION export={kind}"
    command = findings.command(run, "eval") if run else picks
    yield f"```sh\n{command} eval=OPTION    # `diffopt ls` lists the options\n```"


def _samples(samples: Sequence[Sample], evidence: Sequence[Evidence]) -> Iterator[str]:
    if not samples:
        return
    simulated = " The right ones are simulated." if _simulated(evidence) else ""
    yield "## Pictures"
    yield ""
    yield f"The first prompts, and the one that lost most where it is none of them; same prompt and seed on both.{simulated}"
    yield ""
    rows = [(cell(s.prompt), str(s.seed), f"![base]({s.base})", f"![this]({s.candidate})", s.said) for s in samples]
    yield from table(("prompt", "seed", "full precision", "these weights", ""), rows)


def _made(subject: Subject, evidence: Sequence[Evidence], run: Run | None) -> Iterator[str]:
    head, pinned = subject.head, subject.pinned
    yield "## How it was made"
    yield ""
    rows = [
        ("base model", cell(subject.model)),
        ("its version", f"`{pinned.source}`" + ("" if subject.hub else " (of the content of a directory)")),
        ("quantized layers", ", ".join(f"{n} in {LABELS.get(f, f)}" for f, n in subject.formats.items())),
        ("stored bits per quantized weight", f"{head.weight_bits:g}"),
        ("algorithm", cell(_algorithm(head.algorithm))),
        ("q, k and v have one scale", "yes" if head.share_scales else "no"),
    ]
    if head.weights != "max":
        rows.append(("scales of the weights' blocks", head.weights))
    if head.damping is not None:
        rows.append(("rounding of the weights", f"{head.rounding}, damping {head.damping:g}"))
    rows += [(f"adapter {i}", _adapter(a)) for i, a in enumerate(pinned.lora)]
    if t := subject.training:
        rows.append(("training", f"{t.method.upper()}, {t.steps} steps on {t.items} items of {t.prompts} prompts"))
    rows += [(f"artifact `{kind}`", f"`{fingerprint}`") for kind, fingerprint in subject.lineage.items()]
    packages = {k: v for k, v in (subject.made.get("packages") or {}).items() if v}
    versions = {"diffopt": subject.made.get("diffopt"), **packages}
    rows.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items() if v)))
    yield from table(("", ""), rows)
    yield from findings.recipes(evidence, run)


def _algorithm(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        return "; ".join(_algorithm(x) for x in value)
    return "none: scales are found as it computes" if value is None else str(value)


def _adapter(adapter: Any) -> str:
    hits = ", ".join(f"{n} layers of {component}" for component, n in adapter.hits.items())
    name = private.text(adapter.name).rpartition("/")[2]
    return f"{cell(name)} (`{adapter.source}`) at scale {adapter.scale:g}, fused into {hits}"
