"""`diffopt eval`: pictures of any models through any metrics: one table, with intervals and verdicts, JSON and HTML."""

import os
from pathlib import Path

from diffopt.cli import picture_list
from diffopt.cli.arguments import Parser
from diffopt.cli.picture_list import PictureList
from diffopt.errors import ConfigError, DiffoptError, MetricError, suggestion
from diffopt.files.evaluation import EvaluatedMetric, EvaluationFile, ModelResult
from diffopt.metrics import METRICS, SOURCES, Scorer, Weights
from diffopt.report.gallery import SCRIPT, SHOWN, of_evaluation
from diffopt.report.html import PAGE, render
from diffopt.store.files import publish
from diffopt.store.source import LOCAL, Sources, read_scorer
from diffopt.store.store import Store
from diffopt.text import about_means, digits, few_values, number, with_interval

DEFAULTS = {
    "clip": "openai/clip-vit-large-patch14",
    "imagereward": "THUDM/ImageReward",
    "features": "openai/clip-vit-large-patch14-336",
}
"""The weights of published numbers, as in conf/eval/default.yaml."""
DATA = '[{"prompt": ..., "images": {"MODEL": "PATH"}}], paths relative to the file; or directories of runs and sweeps'


def parser() -> Parser:
    made = Parser("diffopt eval", description="Score the pictures of any models; the first one named is the reference.")
    made.add_argument("--data-path", type=Path, nargs="+", required=True, metavar="PATH", help=DATA)
    made.add_argument("--metrics", nargs="+", default=["imagereward"], metavar="NAME", help=", ".join(METRICS))
    made.add_argument("--reference", metavar="MODEL", help="what the others are compared with; `none` for no comparison")
    made.add_argument("--root", type=Path, help="refuse pictures outside this directory")
    made.add_argument("--output", type=Path, help=f"directory for {EvaluationFile.NAME} and {PAGE}")
    for name, about in SOURCES.items():
        made.add_argument(f"--{name}", default=DEFAULTS[name], metavar="MODEL", help=f"{about} ({DEFAULTS[name]})")
    return made


def offered(words: list[str]) -> list[str]:
    """To complete: of --metrics the metrics."""
    flag = next((w for w in reversed(words[:-1]) if w.startswith("-")), "")
    return [m for m in METRICS if m not in words] if flag == "--metrics" else []


def command(arguments: list[str]) -> None:
    """`diffopt eval`. Prints what could be measured; raises ConfigError or MetricError, whose lines say what could not."""
    given = parser().parse_args(arguments)
    listed = _listed(given.data_path, given.root)
    reference = _reference(given.reference, [*listed.pictures])
    _check_metrics(given.metrics, reference)
    content, problems = evaluate(listed, given.metrics, reference, {name: getattr(given, name) for name in SOURCES})
    if content.metrics:
        print("\n".join(table(content)))
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        publish(given.output / EvaluationFile.NAME, content.to_json())
        shown = of_evaluation(content, listed.pictures, given.output, SHOWN)
        print(f"report  {publish(given.output / PAGE, render('eval.html', script=SCRIPT, e=content, gallery=shown))}")
    if problems:
        raise MetricError("\n".join(problems))


def _listed(paths: list[Path], root: Path | None) -> PictureList:
    if all(path.is_dir() for path in paths):
        return picture_list.of_runs(paths)
    if len(paths) > 1:
        raise ConfigError(f"--data-path: several must be directories of runs (got {', '.join(map(str, paths))}); give one file")
    return picture_list.read(paths[0], root)


def _reference(asked: str | None, models: list[str]) -> str | None:
    if asked == "none" or (asked is None and len(models) == 1):
        return None
    if asked is not None and asked not in models:
        raise ConfigError(f"--reference: no such model (got {asked!r}); {suggestion(asked, models)}")
    return asked or models[0]


def _check_metrics(names: list[str], reference: str | None) -> None:
    if unknown := [n for n in names if n not in METRICS]:
        raise ConfigError(f"--metrics: no such metric (got {unknown[0]!r}); {suggestion(unknown[0], METRICS)}")
    if films := [n for n in names if METRICS[n].of_video]:
        raise ConfigError(f"--metrics: judges videos (got {films[0]!r}, and a list of pictures); leave it out")
    if twice := [n for n in names if names.count(n) > 1]:
        raise ConfigError(f"--metrics: names one twice (got {twice[0]!r}); name each once")
    if reference is None and (alone := [n for n in names if METRICS[n].judges != "picture"]):
        raise ConfigError(f"--metrics: {alone[0]} compares with a reference (got no second model); add one, or leave it out")


def evaluate(
    listed: PictureList, names: list[str], reference: str | None, sources: dict[str, str]
) -> tuple[EvaluationFile, list[str]]:
    """What was measured, and a line for each thing that was not."""
    from diffopt.machine.environment import gpus
    from diffopt.machine.output import to_log
    from diffopt.machine.progress import bar, step
    from diffopt.quality.scoring import BATCH, measure
    from diffopt.quality.summary import order, summarise

    with to_log(), step("eval"):
        device = "cuda" if gpus() else "cpu"
        scorers, used, problems = _open(names, sources, device)
        with bar("eval", len(listed.pictures) * -(-len(listed.prompts) // BATCH)) as tick:
            measured = measure(listed.prompts, listed.pictures, scorers, reference, tick, device)
    metrics = {}
    for name, scorer in scorers.items():
        if name in measured.failed or not measured.kept.any():
            continue
        metric = METRICS[name]
        metrics[name] = EvaluatedMetric(
            title=metric.title,
            unit=metric.unit,
            better=metric.better,
            weights={source: used[source] for source in metric.needs},
            models=summarise(name, measured, scorer, reference),
            order=order(name, measured) if metric.paired else [],
        )
    problems += [*measured.failed.values(), *measured.flaws]
    content = EvaluationFile(
        reference=reference,
        models=[*listed.pictures],
        prompts=listed.prompts,
        left_out=[i for i, kept in enumerate(measured.kept) if not kept],
        problems=problems,
        metrics=metrics,
    )
    return content, problems


def _open(names: list[str], sources: dict[str, str], device: str) -> tuple[dict[str, Scorer], dict[str, str], list[str]]:
    """The scorers that can be had, the digests of their weights, and why the others cannot."""
    known = Sources(Store.at(os.environ.get("DIFFOPT_STORE", "outputs/store")).sources)
    directories: dict[str, Path] = {}
    digests: dict[str, str] = {}
    refused: dict[str, str] = {}
    for name in dict.fromkeys(source for n in names for source in METRICS[n].needs):
        try:
            digests[name] = known.pinned(read_scorer(sources[name]))
            directories[name] = known.locate(digests[name])
        except ValueError as e:
            what, _, advice = str(e).partition("; ")
            refused[name] = f"--{name}: {what} (got {sources[name]!r}); {advice}"
        except DiffoptError as e:
            refused[name] = f"--{name}: {str(e).removeprefix('source: ').replace(LOCAL, SOURCES[name])}"
    weights, scorers, problems = Weights(directories, device), {}, []
    for name in names:
        lacking = [refused[source] for source in METRICS[name].needs if source in refused]
        if lacking:
            problems.append(f"{name} is left out: {lacking[0]}")
            continue
        try:
            scorers[name] = METRICS[name].open(weights)
        except MetricError as e:
            problems.append(f"{name} is left out: {e}")
    return scorers, digests, problems


def table(content: EvaluationFile) -> list[str]:
    """A row for each model, a column for each metric; then a verdict for each, and which models can be told apart."""
    metrics = content.metrics
    header = ["model", *(m.title + (f" ({m.unit})" if m.unit else "") for m in metrics.values())]
    rows = [header]
    for model in content.models:
        cells = [_cell(m.models.get(model)) for m in metrics.values()]
        rows.append([model + (" (reference)" if model == content.reference else ""), *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    n = len(content.prompts) - len(content.left_out)
    stats = [entry.stat for metric in metrics.values() for entry in metric.models.values()]
    lines.append(f"n={n} prompts; mean {about_means(stats[0]).replace('beside it', 'below') if stats else ''}".rstrip())
    for metric in metrics.values():
        for model, entry in metric.models.items():
            if (each := few_values(entry.stat)) and (entry.difference or entry.verdict is None):  # else the verdict has them
                lines.append(f"{metric.title}, {model}: {each}")
            if entry.verdict is not None:
                lines.append(f"{metric.title}, {model}: {entry.verdict}")
        lines += [f"{metric.title}, order: {line}" for line in metric.order]
    return lines


def _cell(entry: ModelResult | None) -> str:
    """Without the values of a few: they would make a row too long to read, and stand below."""
    if entry is None:
        return "-"
    return with_interval(entry.stat) if entry.stat.ends else number(entry.stat.mean, digits(entry.stat))
