"""What a setting costs: foreseen from its layers before anything is drawn, and measured where it has run."""

import json
from collections.abc import Sequence
from typing import Any

from diffopt import formats, models
from diffopt.files.cache_summary import CacheSummary
from diffopt.files.layers import Layer
from diffopt.files.pipeline import PipelineFile
from diffopt.files.sensitivity import SensitivityFile
from diffopt.groups.format import weights
from diffopt.groups.model import BYTES
from diffopt.quantization.layers import without
from diffopt.quantization.mixed_precision import tried
from diffopt.race.contestant import Cost
from diffopt.report.run_directory import Run
from diffopt.report.weight_bytes import in_format
from diffopt.runtimes import RUNTIMES
from diffopt.sweep.cost import times
from diffopt.sweep.job_table import Row
from diffopt.view import Choices

Costs = dict[str, Cost]
"""By name: `latency`, `bytes`, `memory`, `steps`, `work`, as far as they are known."""
CACHED = 0.6
"""What a cache is taken to leave of the arithmetic until it has run: about what most here leave."""
NEAR = 1.25
"""Within which factor it leaves as much in another setting: on the embedded model 0.57 or 0.78 in every format."""


def simulated(choices: Choices) -> bool:
    """Whether the runtime has no kernels for the format, so that no time of it counts."""
    assert choices.eval is not None
    return (choices.format.name if choices.format else None) not in RUNTIMES[choices.eval.runtime].kernels


def program(choices: Choices) -> str:
    """What decides how long a picture takes, whatever the numbers in the weights are: settings that have it in common are
    timed once."""
    model, eval = choices.model, choices.eval
    assert model is not None
    assert eval is not None
    of_model = {k: str(getattr(model, k)) for k in ("source", "dtype", "height", "width", "frames", "guidance_scale")}
    of_format = choices.format.model_dump(mode="json") if choices.format else None
    of_cache = choices.cache.model_dump(mode="json") if choices.cache else None
    run = (eval.runtime, eval.steps, eval.batch_size, eval.cuda_graph)
    return json.dumps([of_model, of_format, of_cache, run], sort_keys=True)


class Shares:
    """What caches leave of the arithmetic. One that decides while it runs is known when it has: then of other settings with the
    same cache and steps too, but for a fifth."""

    def __init__(self) -> None:
        self._seen: dict[str, list[float]] = {}

    def add(self, choices: Choices, share: float) -> None:
        self._seen.setdefault(_caching(choices), []).append(share)

    def work(self, choices: Choices, taken: Cost) -> Cost:
        """Of a setting that has not run, whose weights take so many bytes."""
        assert choices.eval is not None
        steps, seen = choices.eval.steps, self._seen.get(_caching(choices), [])
        if choices.cache is None:
            usual = least = most = 1.0
        elif seen:
            usual, least, most = sum(seen) / len(seen), min(seen) / NEAR, min(1.0, max(seen) * NEAR)
        else:
            usual, least, most = CACHED, 1 / steps, 1.0  # the first step is always computed
        return Cost(taken.value * steps * usual, taken.low * steps * least, taken.high * steps * most)


def _caching(choices: Choices) -> str:
    assert choices.eval is not None
    of_cache = choices.cache.model_dump(mode="json") if choices.cache else None
    return json.dumps([of_cache, choices.eval.steps], sort_keys=True)


def foreseen(choices: Choices, pinned: PipelineFile, layers: Sequence[Layer]) -> Costs:
    """Before it has run: the weights' bytes as stored, denoising steps, and the work of both together."""
    assert choices.eval is not None
    taken = _bytes(choices, pinned, layers)
    return {"bytes": taken, "steps": Cost.exact(choices.eval.steps), "work": Shares().work(choices, taken)}


def _bytes(choices: Choices, pinned: PipelineFile, layers: Sequence[Layer]) -> Cost:
    chosen = choices.format
    if chosen is None:
        return Cost.exact(in_format(pinned, (), 0, None))
    kept = [*models.of(pinned).kept(pinned.blocks, pinned.backbones), *chosen.exclude]
    methods = formats.methods(chosen)
    convolutions = any(m.convolution for m in methods)
    quantized = [x for x in without(layers, kept) if x.kind == "linear" or (x.kind == "convolution" and convolutions)]

    def at(bits: float, rank: int | None = None) -> float:
        return float(in_format(pinned, quantized, bits, rank))

    if chosen.name != "auto":
        method = methods[0]
        return Cost.exact(at(method.bits(chosen.block_size), chosen.rank or method.rank))
    bits = sorted(m.weight_bits for m in methods)
    most = 8.0 * BYTES.get(pinned.dtype, 4) if "full" in chosen.candidates else bits[-1]
    asked = chosen.budget.bits if chosen.budget and chosen.budget.bits else sum(bits) / len(bits)
    return Cost(at(asked), at(bits[0]), at(most))


def measured(run: Run, steps: int) -> Costs:
    """What a run has shown of itself, its time apart."""
    found: Costs = {}
    if taken := run.weight_bytes:
        found["bytes"] = Cost.exact(taken)
        saved: CacheSummary | None = run.images.cache
        found["work"] = Cost.exact(taken * steps * (saved.computed if saved else 1.0))
    if peak := _peak(run):
        found["memory"] = Cost.exact(peak)
    return found


def timed(rows: list[Row]) -> dict[str, Cost]:
    """Seconds per picture by job. Full precision without a cache is its own baseline, which alone was timed then."""
    found = times(rows)
    known = {j: Cost(v, *found.ranges.get(j, (v, v))) for j, v in found.values.items()} if found else {}
    for row in rows:
        if row.run and row.run.latency and row.run.latency.candidate is None:
            spread = row.run.latency.baseline.seconds_per_image
            known[row.job] = Cost(spread.median, spread.p10, spread.p90)
    return known


def _peak(run: Run) -> int | None:
    """The most of the GPU that drawing took, in bytes; None where none was used, or the format is only simulated."""
    if run.images.simulated:
        return None
    records: list[Any] = [run.read(s.name, "record.json") for s in run.content.steps if s.name.startswith("sample_part.")]
    peaks = [r["provenance"].get("peak_bytes", {}).get("gpu") for r in records if r]
    return max((p for p in peaks if p), default=None)


def damage(choices: Choices, sensed: SensitivityFile) -> float:
    """What the format does to the outputs of the layers that it quantizes: their relative errors squared, added up; of a format
    that was not tried the mean of those that were, so that nothing is held against it."""
    chosen = choices.format
    if chosen is None:
        return 0.0
    there = without([Layer(x.name, x.kind, ()) for x in sensed.layers], chosen.exclude)
    names = {x.name for x in there}
    kind = weights(chosen)
    known = [chosen.name] if chosen.name in sensed.formats else list(sensed.formats)
    found = 0.0
    for layer in sensed.layers:
        energy = sum(layer.energy)
        errors = [sum(layer.error[tried(layer, n, kind)]) for n in known if n in layer.error]
        if layer.name in names and energy and errors:
            found += sum(errors) / len(errors) / energy
    return found
