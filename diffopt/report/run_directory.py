"""A run's directory as the report reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from diffopt.artifact import Images
from diffopt.errors import ConfigError, StoreError
from diffopt.files.bench import BenchFile
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.comparison import Compared, ComparisonFile
from diffopt.files.components import ComponentsFile
from diffopt.files.deploy import DeployFile
from diffopt.files.graph import OnnxGraphFile
from diffopt.files.images import Drawn, ImagesFile
from diffopt.files.interval import Interval
from diffopt.files.json_file import JsonFile, loaded
from diffopt.files.latency import LatencyFile
from diffopt.files.layers import read_layers
from diffopt.files.metrics import MetricResult, MetricsFile
from diffopt.files.native import NativeFile
from diffopt.files.parity import ParityFile
from diffopt.files.pipeline import PipelineFile
from diffopt.files.plan import LAYERS, EnginePlanFile
from diffopt.files.ranges import RangesFile
from diffopt.files.run import RunFile
from diffopt.groups.model import BYTES
from diffopt.quality.direction import sign
from diffopt.report.form import Form, code, held, parts
from diffopt.report.pair import RunPair, VideoPaths, identical, values_of
from diffopt.report.ranges import Ranges
from diffopt.report.weight_bytes import weight_bytes
from diffopt.store.entry import RECORD, Entry
from diffopt.store.files import content

RUN = RunFile.NAME
File = TypeVar("File", bound=JsonFile)


def _parsed(name: str, found: bytes) -> Any:
    try:
        return loaded(found)
    except ValueError as e:
        raise StoreError(f"{name}: cannot be read (got {e}); make what it belongs to again") from None


@dataclass(frozen=True)
class Run:
    """A run's directory: run.json, and a link per step to its artifact. What it lacks is None."""

    directory: Path

    @cached_property
    def content(self) -> RunFile:
        try:
            found = loaded(content(self.directory / RUN))
        except (OSError, ValueError) as e:
            raise ConfigError(f"report: {RUN} cannot be read (got {e}); run the recipe again") from None
        try:
            return RunFile.of(found)
        except StoreError as e:
            what = str(e).partition("; ")[0].removeprefix(f"{RUN}: ").partition(" (got ")[0]
            raise ConfigError(
                f"report: {RUN} is not one of ours, {what} (got {str(self.directory)!r}); name a run's directory"
            ) from None

    @property
    def lost(self) -> list[str]:
        """Steps whose artifacts the store has no more."""
        steps = [s.name for s in self.content.steps if s.state != "spare"]
        return [name for name in steps if not (self.directory / name / "record.json").is_file()]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The recipe as composed; a group that was not chosen is an empty dict."""
        found: Any = OmegaConf.to_container(OmegaConf.create(self.content.config), resolve=False)
        return {
            group: found.get(group) or {} for group in ("model", "format", "calib", "sense", "cache", "train", "export", "eval")
        }

    def read(self, step: str, name: str) -> Any | None:
        """The parsed file `name` of a step's artifact; None where the plan had no such step, or the store lost it."""
        path = self.directory / step / name
        if not path.is_file():
            return None
        if (self.directory / step).is_symlink():  # into a store; a copy of a run has none
            entry = self._entry(step)
            return entry.record if name == RECORD else _parsed(name, entry.content(name))
        return _parsed(name, content(path))

    def _entry(self, step: str) -> Entry:
        """The artifact that a step's link leads to, which has to be the run's: its record is checked when it is read."""
        if step not in self._entries:
            path = (self.directory / step).resolve()
            wanted = next((s.fingerprint for s in self.content.steps if s.name == step), path.name)
            self._entries[step] = Entry(path.parent.name, wanted, path)
        return self._entries[step]

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        return {}

    def stored(self, step: str, kind: type[File]) -> File | None:
        """The same of a file that has a type of its own."""
        content = self.read(step, kind.NAME)
        return None if content is None else kind.of(content)

    def taken(self, step: str, *less: str) -> int | None:
        """Size on disk of a step's artifact without its record and the files whose names end as one of `less`."""
        folder = self.directory / step
        files = [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(("record.json", *less))]
        return sum(p.stat().st_size for p in files) if files else None

    @cached_property
    def score(self) -> MetricsFile | None:
        return self.stored("score", MetricsFile)

    @property
    def metrics(self) -> Mapping[str, MetricResult]:
        """By name, in the recipe's order."""
        return self.score.metrics if self.score else {}

    @cached_property
    def compared(self) -> tuple[Compared, ...]:
        """The further candidates."""
        found = self.stored("compare", ComparisonFile)
        return found.compared if found else ()

    @cached_property
    def images(self) -> ImagesFile:
        return self.stored("sample", ImagesFile) or ImagesFile()

    @cached_property
    def references(self) -> ImagesFile:
        return self.stored("reference", ImagesFile) or ImagesFile()

    @cached_property
    def latency(self) -> LatencyFile | None:
        return self.stored("time", LatencyFile)

    @cached_property
    def ranges(self) -> Ranges | None:
        """Of the candidate's inputs, where a runtime counted them."""
        found = self.stored("sample", RangesFile)
        return Ranges(found, self.config) if found else None

    @cached_property
    def parity(self) -> ParityFile | None:
        return self.stored("parity", ParityFile)

    @property
    def speedup(self) -> Interval | None:
        """Baseline's time over candidate's, end to end."""
        return self.latency.speedup.end_to_end if self.latency and self.latency.speedup else None

    @cached_property
    def bench(self) -> BenchFile | None:
        return self.stored("bench", BenchFile)

    @property
    def gated_speedup(self) -> Interval | None:
        """What a gate on the latency judges: the speedup, and where a bench alone was made that of its headline."""
        first = self.bench.first if self.bench else None
        return self.speedup or (first.over_base.end_to_end if first and first.over_base else None)

    @property
    def unclaimed(self) -> str:
        """Why there is no speedup, where there is none."""
        if self.latency:
            return "only the baseline was timed, there is nothing to compare it with"
        if self.images.simulated:
            simulated = [note for note in self.content.notes if "simulated" in note]
            return simulated[0] if simulated else "the format is simulated"
        return "it was not measured"

    @property
    def weight_bytes(self) -> int | None:
        """Of all weights in the run's format, as a runtime with its kernels keeps them; None for a run without a source."""
        pipeline, checkpoint = self.stored("load", PipelineFile), self.stored("quantize", CheckpointFile)
        if pipeline is None:
            return None
        return weight_bytes(pipeline, checkpoint, read_layers(self.directory / "load") if checkpoint else [])

    @cached_property
    def sizes(self) -> list[Form]:
        """The forms of the backbone: first those that are deployed, then what they are made from."""
        rows = self._deployed()
        checkpoint = self.stored("quantize", CheckpointFile)
        if checkpoint and not rows and (taken := self.weight_bytes):
            note = f"what a runtime with kernels for {checkpoint.format} keeps; nothing was exported, export=OPTION makes it"
            rows.append(Form("weights", "Weights as stored", taken, note))
        rows += self._sources()
        if checkpoint and (taken := self.taken("quantize")):
            note = held(checkpoint, any((self.directory / "quantize").glob("extremes.*")))
            rows.append(Form("quantize", "Checkpoint", taken, f"only what differs from the source: {note}"))
        if taken := sum(p.stat().st_size for p in (self.directory / "train").glob("*.safetensors")):  # no logs nor pictures
            rows.append(Form("train", "Trained checkpoint", taken, "the weights that were trained, beside their scales"))
        base = next((r for step in ("export.baseline", "load") for r in rows if r.step == step), None)
        rows = [replace(r, base=r is base, share=r.bytes / base.bytes) for r in rows] if base else rows
        return rows + self._components()

    def _components(self) -> list[Form]:
        """Text encoders in fewer bits; each is a share of itself in the model's precision."""
        found, pipeline = self.stored("slim", ComponentsFile), self.stored("load", PipelineFile)
        if found is None or pipeline is None:
            return []
        return [
            Form("slim", name, c.bytes, f"{c.layers} layers in {c.format}, of {pipeline.dtype}", share=c.bytes / c.plain)
            for name, c in found.parts.items()
        ]

    def _deployed(self) -> list[Form]:
        """Weights as other programs load them, packed weights, engine plan, ONNX graph: those that there are."""
        rows: list[Form] = []
        if (deployed := self.stored("deploy", DeployFile)) and (taken := self.taken("deploy")):
            note = f"{deployed.format}, the rest in {deployed.dtype}, as {deployed.layout} lays it out"
            rows.append(Form("deploy", "Deployed weights", taken, note))
        if (packed := self.stored("pack", NativeFile)) and (taken := self.taken("pack")):
            fallen = f"; {len(packed.fell_back)} layers fall back" if packed.fell_back else ""
            rows.append(Form("pack", "Packed weights", taken, f"{packed.format}, the rest in {packed.dtype}{fallen}"))
        graph, plan = self.stored("export", OnnxGraphFile), self.stored("build", EnginePlanFile)
        if plan and (taken := self.taken("build", plan.NAME, LAYERS)):
            source = self.stored("load", PipelineFile)
            said = [plan.format or "full precision", *parts(plan)]
            if graph:
                plain = source.parameters * BYTES.get(source.dtype, 4) if source else None
                said += code(plan, taken, graph.bytes, self.taken("export", graph.NAME), plain)
            rows.append(Form("build", "Engine plan", taken, ", ".join(said)))
        if graph and (taken := self.taken("export", graph.NAME)):
            rows.append(Form("export", "ONNX graph", taken, ", ".join([graph.format or "full precision", *parts(graph)])))
        return rows

    def _sources(self) -> list[Form]:
        """The plain graph, and the backbone that the model's own files hold."""
        rows: list[Form] = []
        plain, pipeline = self.stored("export.baseline", OnnxGraphFile), self.stored("load", PipelineFile)
        if plain and (taken := self.taken("export.baseline", plain.NAME)):
            note = ", ".join([plain.format or "full precision", *parts(plain)])
            rows.append(Form("export.baseline", "ONNX graph, plain", taken, note))
        if pipeline:
            many, dtype = pipeline.parameters, pipeline.dtype
            note = f"{many / 1e6:,.1f} million parameters in {dtype}"
            for adapter in pipeline.lora:
                hits = ", ".join(f"{n} layers of {component}" for component, n in adapter.hits.items())
                note += f"; {Path(adapter.name).name} at scale {adapter.scale:g} fused into {hits}"
                note += f", {len(adapter.idle)} keys that change nothing left out" if adapter.idle else ""
            rows.append(Form("load", "Source backbone", many * BYTES.get(dtype, 4), note))
        return rows

    def size_of(self, step: str) -> Form | None:
        return next((r for r in self.sizes if r.step == step), None)

    @cached_property
    def pairs(self) -> list[RunPair]:
        """One a prompt; the worst by the first metric first."""
        steps = {s.name.partition("@")[2]: s.name for s in self.content.steps if s.kind == Images.kind}
        names = {"reference": "reference", "candidate": "sample"}
        names |= {c.name: steps[c.name] for c in self.compared if c.name in steps}
        names["difference"] = "score/difference"
        scores = {c.name: self.stored(f"score@{c.name}", MetricsFile) for c in self.compared}
        others = {name: score.metrics if score else {} for name, score in scores.items()}
        rows = []
        for i, row in enumerate(self.images.images or self.references.images):
            files = {k: self.directory / folder / row.file for k, folder in names.items()}
            theirs = {name: m.reference_values[i] for name, m in self.metrics.items() if m.reference_values}
            there = {k: p for k, p in files.items() if p.is_file()}
            there |= self._given(i)
            same = {"candidate", "reference"} <= set(there) and identical(there["candidate"], there["reference"])
            pair = RunPair(
                number=i,
                prompt=row.prompt,
                seed=row.seed,
                files=there,
                same=same,
                values=values_of(self.metrics, i),
                theirs=theirs,
                compared={k: values_of(found, i) for k, found in others.items()},
                videos=self._videos(row, names),
            )
            rows.append(pair)
        for name, metric in [(n, m) for n, m in self.metrics.items() if m.values is not None][:1]:
            turn = sign(metric.better)
            rows.sort(key=lambda r: turn * r.worth(name))
        return rows

    def _given(self, number: int) -> dict[str, Path]:
        """Of a prompt its pictures, as the model was given them."""
        for step, drawn in {"sample": self.images, "reference": self.references}.items():
            if number < len(drawn.images) and (own := drawn.images[number].given):
                return {f"given {r}": p for r, name in own.items() if (p := self.directory / step / name).is_file()}
        return {}

    def _videos(self, row: Drawn, names: dict[str, str]) -> dict[str, VideoPaths]:
        """By kind."""
        found = {}
        for kind in [k for k in names if k != "difference"]:
            folder = self.directory / names[kind]
            if row.frames is not None and row.plays and (folder / row.plays).is_file():
                found[kind] = VideoPaths([folder / name for name in row.frames], folder / row.plays)
        return found
