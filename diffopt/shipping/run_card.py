"""The card of a run that made weights for other programs, in its directory beside the report."""

from dataclasses import replace
from pathlib import Path

from diffopt.artifact import Components, DeployedCheckpoint, NativeCheckpoint, Pipeline
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.deploy import DeployFile
from diffopt.files.pipeline import PipelineFile
from diffopt.files.run import RunStep
from diffopt.files.training import TrainingFile
from diffopt.report.run_directory import Run
from diffopt.report.run_page import CARD
from diffopt.shipping import licence, samples, ways
from diffopt.shipping.card import card
from diffopt.shipping.evidence import checkpoint_of, of_run
from diffopt.shipping.shipment import WEIGHTS
from diffopt.shipping.subject import Subject, called
from diffopt.shipping.ways import Way
from diffopt.store.entry import Entry
from diffopt.store.files import publish


def write(run: Run, source: Path | None) -> Path | None:
    """Write it; None for a run that made no such weights. `source` is the model's directory, None where it is not here."""
    steps = run.content.steps
    made = next((s for s in steps if s.kind in (DeployedCheckpoint.kind, NativeCheckpoint.kind)), None)
    quantized = made and checkpoint_of(made.name, steps)
    scored = next((s for s in steps if s.fingerprint == quantized), None)
    if made is None or scored is None or {made.name, scored.name, "load"} & {*run.lost}:
        return None
    entry = Entry(made.kind, made.fingerprint, (run.directory / made.name).resolve())
    way = ways.own(entry)
    if way is None:
        return None
    found = list(of_run(run, scored.fingerprint, checkpoint_of(made.name, steps, Components.kind)))
    pictures = samples.linked(samples.chosen(found), run.directory)
    text = card(_subject(run, way, entry, scored, source), found, pictures, run)
    return publish(run.directory / CARD, text)


def _subject(run: Run, way: Way, entry: Entry, scored: RunStep, source: Path | None) -> Subject:
    pinned = run.stored("load", PipelineFile)
    assert pinned is not None
    known = licence.of(source)
    link = known.link if known.link and known.link.startswith("https://") else None
    folder = run.directory / scored.name
    slim = DeployFile.read(entry.path).components if entry.kind == DeployedCheckpoint.kind else {}
    pipeline = next(s for s in run.content.steps if s.kind == Pipeline.kind)
    return Subject(
        way=way,
        pinned=pinned,
        head=CheckpointFile.read(folder),
        training=TrainingFile.read(folder) if (folder / TrainingFile.NAME).is_file() else None,
        made=entry.record["provenance"],
        lineage={s.kind: s.fingerprint for s in (pipeline, scored, entry)},
        licence=replace(known, link=link, files=()),  # whose texts are not in a run's directory
        model=called(pinned, str(run.config["model"].get("base") or run.config["model"].get("source") or "")),
        bytes=sum(p.stat().st_size for p in entry.path.rglob(WEIGHTS) if p.parent.name not in slim),
        slim=slim,
        whole=way.whole and pinned.weights != "random",
    )
