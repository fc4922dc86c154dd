"""The page of one run: a view of what run.json links to, made anew at any time. Imports no torch and no numpy."""

import argparse
import base64
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from diffopt import __version__
from diffopt.errors import ConfigError
from diffopt.shelf import size

RUN, PAGE, SWEEP = "run.json", "report.html", "multirun.yaml"
SHOWN = 200
"""Pairs of pictures on one page; beyond it only the worst, so that the page stays one that a browser opens."""
PREVIEW = 512
"""Pixels of the longer side. A larger picture is shown as a JPEG of this size: 64 of 1024 x 1024 would be 300 MB."""
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Run:
    """A run's directory: run.json, and a link per step to its artifact. What it lacks is None."""

    directory: Path

    @cached_property
    def content(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.directory / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise ConfigError(f"report: {RUN} cannot be read (got {e}); run the recipe again") from None
        return found

    @cached_property
    def config(self) -> dict[str, Any]:
        """The recipe as composed; a group that was not chosen is an empty dict."""
        found: Any = OmegaConf.to_container(OmegaConf.create(self.content["config"]), resolve=False)
        return {group: found.get(group) or {} for group in ("model", "format", "calib", "cache", "export", "eval")}

    def read(self, step: str, name: str) -> Any | None:
        """The parsed file `name` of a step's artifact; None where the plan had no such step, or the store lost it."""
        path = self.directory / step / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def taken(self, step: str, *less: str) -> int | None:
        """Size on disk of a step's artifact without its record and the files `less`."""
        folder = self.directory / step
        files = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("record.json", *less)]
        return sum(p.stat().st_size for p in files) if files else None

    @cached_property
    def score(self) -> dict[str, Any] | None:
        return self.read("score", "metrics.json")

    @property
    def metrics(self) -> dict[str, Any]:
        """By name, in the recipe's order."""
        found: dict[str, Any] = self.score["metrics"] if self.score else {}
        return found

    @cached_property
    def images(self) -> dict[str, Any]:
        return self.read("sample", "images.json") or {"runtime": None, "simulated": False, "images": []}

    @cached_property
    def latency(self) -> dict[str, Any] | None:
        return self.read("time", "latency.json")

    @property
    def speedup(self) -> dict[str, Any] | None:
        """Baseline's time over candidate's, end to end: mean, low, high, n."""
        found: dict[str, Any] | None = self.latency and self.latency["speedup"] and self.latency["speedup"]["end_to_end"]
        return found

    @property
    def unclaimed(self) -> str:
        """Why there is no speedup, where there is none."""
        if self.latency:
            return "only the baseline was timed, there is nothing to compare it with"
        if self.images["simulated"]:
            simulated = [note for note in self.content["notes"] if "simulated" in note]
            return simulated[0] if simulated else "the format is simulated"
        return "it was not measured"

    @cached_property
    def sizes(self) -> list[dict[str, Any]]:
        """What each form of the backbone takes, in bytes; `base` is the one that the others are a share of."""
        pipeline, checkpoint = self.read("load", "pipeline.json"), self.read("quantize", "checkpoint.json")
        rows: list[dict[str, Any]] = []
        if pipeline:
            many, dtype = pipeline["parameters"], pipeline["dtype"]
            note = f"{many / 1e6:,.1f} million parameters in {dtype}"
            rows.append({"step": "load", "what": "Source backbone", "bytes": many * BYTES.get(dtype, 4), "note": note})
        if checkpoint and (taken := self.taken("quantize")):
            note = "only what differs from the source: scales and extremes, no weights"
            rows.append({"step": "quantize", "what": "Checkpoint", "bytes": taken, "note": note})
        for step, what, other in (
            ("export.baseline", "ONNX graph, plain", "graph.json"),
            ("export", "ONNX graph", "graph.json"),
            ("build", "Engine plan", "plan.json"),
        ):
            if (head := self.read(step, other)) and (taken := self.taken(step, other)):
                rows.append({"step": step, "what": what, "bytes": taken, "note": head["format"] or "full precision"})
        base = next((r for step in ("export.baseline", "load") for r in rows if r["step"] == step), None)
        return [{**r, "base": r is base, "share": r["bytes"] / base["bytes"] if base else None} for r in rows]

    def size_of(self, step: str) -> dict[str, Any] | None:
        return next((r for r in self.sizes if r["step"] == step), None)

    @cached_property
    def pairs(self) -> list[dict[str, Any]]:
        """A dict per prompt: prompt, seed, number, files and metric values; the worst by the first metric first."""
        names = {"reference": "reference", "candidate": "sample", "difference": "score/difference"}
        drawn = self.images["images"] or (self.read("reference", "images.json") or {"images": []})["images"]
        rows = []
        for i, row in enumerate(drawn):
            files = {k: self.directory / folder / row["file"] for k, folder in names.items()}
            values = {name: m["values"][i] for name, m in self.metrics.items()}
            theirs = {name: m["reference_values"][i] for name, m in self.metrics.items() if "reference_values" in m}
            there = {k: p for k, p in files.items() if p.is_file()}
            same = {"candidate", "reference"} <= set(there) and there["candidate"].read_bytes() == there[
                "reference"
            ].read_bytes()
            rows.append({**row, "number": i, "files": there, "same": same, "values": values, "theirs": theirs})
        for name, metric in list(self.metrics.items())[:1]:
            sign = 1 if metric["better"] == "higher" else -1
            rows.sort(key=lambda r: sign * (r["values"][name] - r["theirs"].get(name, 0.0)))
        return rows


def write(directory: Path) -> Path:
    """Write the run's page, report.html. Raises ConfigError where `directory` is not a run's."""
    run = Run(directory)
    kinds = [k for k in ("reference", "candidate", "difference") if any(k in p["files"] for p in run.pairs)]
    records = {s["name"]: run.read(s["name"], "record.json") for s in run.content["steps"]}
    text = render("run.html", run=run, kinds=kinds, shown=SHOWN, records=records)
    return publish(directory / PAGE, text)


def summary(directory: Path) -> list[str]:
    """The run in a few lines for the console: metrics, size, speed."""
    run = Run(directory)
    rows = [(m["title"], f"{figure(m['candidate'], m['unit'])}  n={m['candidate']['n']}") for m in run.metrics.values()]
    for step, what in (("export", "graph"), ("build", "plan"), ("quantize", "checkpoint")):
        row, base = run.size_of(step), run.size_of("export.baseline")
        if row and (step != "quantize" or not run.size_of("export")):
            share = f", {row['share']:.1%} of the plain graph's {size(base['bytes'])}" if base else ""
            rows.append((what, size(row["bytes"]) + share))
    rows.append(("speed", speed(run)))
    width = max(len(title) for title, _ in rows)
    return [f"{title:{width}}  {text}" for title, text in rows]


def speed(run: Run) -> str:
    """The speedup with its interval and its machine, or that there is none and why."""
    if not (run.speedup and run.latency):
        return f"not claimed: {run.unclaimed}"
    return f"{figure(run.speedup)} x end to end, {pace(run.speedup)}; {machine(run.latency['machine'])}"


def objective(directory: Path) -> float | None:
    """Mean of the recipe's first metric, for Hydra's sweepers; None where nothing was scored."""
    for metric in Run(directory).metrics.values():
        return float(metric["candidate"]["mean"])
    return None


def command(arguments: list[str]) -> None:
    """`diffopt report DIRECTORY`. Raises ConfigError for a directory that is neither a run's nor a sweep's."""
    parser = argparse.ArgumentParser("diffopt report", description="Write the page of a run or of a sweep again.")
    parser.add_argument("directory", type=Path, help="outputs/runs/NAME/DATE or outputs/sweeps/NAME/DATE")
    directory: Path = parser.parse_args(arguments).directory
    if (directory / RUN).is_file():
        page = write(directory)
        print("\n".join([*summary(directory), f"report  {page}"]))
    elif (directory / SWEEP).is_file() or any(directory.glob(f"*/{RUN}")):
        from diffopt import sweep

        for row in sweep.table(directory):
            if row.run:
                write(row.run.directory)
        page = sweep.write(directory)
        print("\n".join([*sweep.summary(directory), f"report  {page}"]))
    else:
        what = f"has no {RUN} and no {SWEEP}" if directory.is_dir() else "is not a directory"
        raise ConfigError(
            f"report: {what} (got {str(directory)!r}); name a run or a sweep under outputs/runs or outputs/sweeps"
        )


def render(template: str, **content: Any) -> str:
    """A page from diffopt/templates. Every value is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "machine": machine, "pace": pace}
    for name, written in (("figure", figure), ("number", number)):  # a console may lack the sign
        environment.filters[name] = lambda *given, written=written: written(*given).replace("-", "\N{MINUS SIGN}")
    environment.globals |= {"picture": picture, "digits": digits, "version": __version__}
    return environment.get_template(template).render(content)


def publish(path: Path, text: str) -> Path:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", errors="replace")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def picture(path: Path, limit: int = PREVIEW) -> dict[str, Any]:
    """A PNG for the page: `uri` with the data in it, `width` and `height` in pixels, and whether it was made smaller."""
    data, kind = path.read_bytes(), "png"
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")  # the PNG's header, IHDR
    smaller = max(width, height) > limit
    if smaller:
        from PIL import Image

        out, kind = BytesIO(), "jpeg"
        with Image.open(BytesIO(data)) as image:
            image.thumbnail((limit, limit), Image.Resampling.LANCZOS)
            image.convert("RGB").save(out, "JPEG", quality=90)
        data = out.getvalue()
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"uri": uri, "width": width, "height": height, "smaller": smaller}


def digits(stat: dict[str, Any]) -> int:
    """Decimals that leave two figures of the interval's half width, or four of the mean where there is no interval."""
    wide = stat["low"] is not None and stat["high"] > stat["low"]
    scale, figures = ((stat["high"] - stat["low"]) / 2, 2) if wide else (abs(stat["mean"]), 4)
    return min(max(figures - 1 - math.floor(math.log10(scale)), 0), 6) if 0 < scale < math.inf else 2


def number(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}"


def figure(stat: dict[str, Any], unit: str = "") -> str:
    """Mean, unit and 95% interval, e.g. `33.7 dB [31.8, 35.5]`."""
    mean, low, high = (None if stat[k] is None else number(stat[k], digits(stat)) for k in ("mean", "low", "high"))
    return f"{mean}{' ' if unit else ''}{unit}" + ("" if low is None else f" [{low}, {high}]")


def pace(speedup: dict[str, Any]) -> str:
    """What the interval of a speedup says: at 1 candidate and baseline are equally fast."""
    low, high = (speedup["mean"] if speedup[k] is None else speedup[k] for k in ("low", "high"))
    return "faster than its baseline" if low > 1 else "slower than its baseline" if high < 1 else "no difference shown"


def machine(about: dict[str, Any]) -> str:
    """`2 x NVIDIA L4`, or `Xeon, 2 cores` without a GPU."""
    gpus: Sequence[str] = [g["name"] for g in about["gpus"]]
    named = [f"{gpus.count(g)} x {g}" if gpus.count(g) > 1 else g for g in dict.fromkeys(gpus)]
    return " + ".join(named) or f"{about['cpu']}, {about['cores']} cores"
