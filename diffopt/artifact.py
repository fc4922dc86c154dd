"""The kinds of artifact: what passes between stages."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from diffopt.files.graph import OnnxGraphFile


@dataclass(frozen=True)
class Artifact:
    """A finished, read-only directory in the store."""

    kind: ClassVar[str]
    passing: ClassVar[bool] = False
    """Only a means: not made again for its own sake when it was dropped and what needs it is there."""
    path: Path
    fingerprint: str

    def json(self, name: str) -> Any:
        """The parsed content of the file `name` of this artifact."""
        return json.loads((self.path / name).read_text())


class Pipeline(Artifact):
    """`pipeline.json` and `layers.json`: a pinned source, its family, classes and layers. Weights stay where they are."""

    kind = "pipeline"


class Embeddings(Artifact):
    """`embeddings.safetensors`: what the text encoders make of one chunk of prompts, `BATCH.ARGUMENT` by name."""

    kind = "embeddings"
    passing = True


class EvalEmbeddings(Artifact):
    """The same of the evaluation's prompts, for the reference and every variant."""

    kind = "eval-embeddings"
    passing = True


class PartEmbeddings(Artifact):
    """The same of one part of the evaluation's prompts, where they are drawn in parts."""

    kind = "part-embeddings"
    passing = True


class CandidateEmbeddings(Artifact):
    """The same by text encoders whose weights are kept in fewer bits, for the candidate alone."""

    kind = "candidate-embeddings"
    passing = True


class CandidatePartEmbeddings(Artifact):
    """Those of one part of the evaluation's prompts."""

    kind = "candidate-part-embeddings"
    passing = True


EvalTexts = EvalEmbeddings | PartEmbeddings | CandidateEmbeddings | CandidatePartEmbeddings
"""What pictures of the evaluation are drawn of."""


class Components(Artifact):
    """`components.json`, and text encoders in a folder each, as transformers loads them: their weights alone in fewer bits."""

    kind = "components"


class CalibChunk(Artifact):
    """`extremes.safetensors`: per-channel absolute maxima of every quantizer input over one chunk of prompts.

    And `steps.safetensors`: those of convolution inputs, denoising step by step, where they were asked for.
    """

    kind = "calib-chunk"
    passing = True


class CalibStats(Artifact):
    """The same of the chunks of one calibration set, merged."""

    kind = "calib-stats"
    passing = True


class HessianChunk(Artifact):
    """`hessians.safetensors`: of every linear layer the local Hessians of its inputs, summed over one chunk of prompts."""

    kind = "hessian-chunk"
    passing = True


class HistogramChunk(Artifact):
    """`histograms.safetensors`: of every layer how often its inputs had which size, over one chunk of prompts."""

    kind = "histogram-chunk"
    passing = True


class Recording(Artifact):
    """`calls.json` and `tensors.safetensors`: what the backbone was called with over one chunk of prompts."""

    kind = "recording"
    passing = True


class Sensitivity(Artifact):
    """`sensitivity.json`: the relative output error of every layer in every format, denoising step by step."""

    kind = "sensitivity"


class Mix(Artifact):
    """`mix.json`: for every layer a format, within a budget."""

    kind = "mix"


class TrainTexts(Artifact):
    """As Embeddings, of one chunk of the prompts that training data are drawn from."""

    kind = "train-texts"
    passing = True


class TrainLatents(Artifact):
    """`latents.safetensors`: what the full-precision model draws of one chunk of prompts, `latents` FP32 [n, ...]."""

    kind = "train-latents"
    passing = True


class TrainSet(Artifact):
    """What is trained on: `set.json`, `latents.safetensors` and `texts.safetensors`.

    `latents` [n, ...] are the backbone's own, as the VAE encodes, scales and shifts them, not yet packed into tokens.
    `set.json`, schema diffopt.trainset/1: `items` n, the distinct `prompts`, whose embeddings are the rows of
    texts.safetensors by the names of diffopt/pipeline/texts.py, `text` the index of each item's prompt, and `skipped`.
    """

    kind = "train-set"


class Checkpoint(Artifact):
    """`checkpoint.json`, `quantizers.safetensors`, and `extremes.safetensors` where nothing was searched.

    That is what differs from the source; the weights are derived from it again. Block scales that were searched are kept. A
    trained one has its own in `weights.safetensors`, and `training.json` with what training it has seen.
    """

    kind = "checkpoint"


class OnnxGraph(Artifact):
    """`model.onnx` and `graph.json`: the backbone, its inputs and its counted quantizers; several in a folder each.

    One that is cut at reused blocks is `model.0.onnx`, `model.1.onnx` ... instead, which `graph.json` tells of.
    """

    kind = "onnx"

    def by_backbone(self) -> dict[str, "OnnxGraph"]:
        """By the backbone's name its graph."""
        names = OnnxGraphFile.read(self.path).backbones
        return {n: OnnxGraph(self.path / n, self.fingerprint) for n in names} if len(names) > 1 else {names[0]: self}


class EnginePlan(Artifact):
    """`model.plan` and `plan.json`: a serialized TensorRT engine, its builder, target, profiles; and the graph's `graph.json`.

    Of a graph that is cut there is one a part, `model.0.plan` ..., and several backbones have a folder each.
    """

    kind = "engine"

    def by_backbone(self) -> dict[str, "EnginePlan"]:
        """By the backbone's name its plan."""
        return {n: EnginePlan(g.path, g.fingerprint) for n, g in OnnxGraph(self.path, self.fingerprint).by_backbone().items()}


class NativeCheckpoint(Artifact):
    """`native.json`, `config.json` and `model.safetensors`: a backbone with kernels, as `diffopt.load` reads it.

    Of a large one the weights are several files, which `model.safetensors.index.json` tells of. Several backbones are in a
    folder each, and `native.json` counts them all.
    """

    kind = "native"


class DeployedCheckpoint(Artifact):
    """`deploy.json`, and each backbone as another program loads it: a folder of diffusers with quantized weights in
    Model-Optimizer's layout, or a file for ComfyUI.
    """

    kind = "deploy"


class ReferenceImages(Artifact):
    """`000.png` ... and `images.json`: full precision, no cache, the evaluation's prompts and seeds."""

    kind = "reference"


class Images(Artifact):
    """`000.png` ... and `images.json`: the candidate's pictures of the same prompts and seeds.

    And `ranges.json`, where inputs that leave their calibrated range could be counted meanwhile.
    """

    kind = "images"


class ReferencePart(Artifact):
    """The reference's pictures of one part of the prompts, numbered from 0."""

    kind = "reference-part"
    passing = True


class ImagesPart(Artifact):
    """The candidate's."""

    kind = "images-part"
    passing = True


class MagRatios(Artifact):
    """`ratios.json`: how large what a backbone's blocks add is at each step beside the step before, for MagCache."""

    kind = "mag-ratios"


class CacheSearch(Artifact):
    """`search.json`: every value of a cache's knob that was tried, cliffs between them, and the one that was chosen."""

    kind = "cache-search"


class Latency(Artifact):
    """`latency.json`: candidate and baseline timed in turn on one named machine."""

    kind = "latency"


class Parity(Artifact):
    """`parity.json`: what the kernels of the native runtime compute beside what is simulated, step by step, layer by layer."""

    kind = "parity"


class Bench(Artifact):
    """`bench.json`: ways to run one model timed in turn on one named machine, beside the floor of its arithmetic."""

    kind = "bench"


class Metrics(Artifact):
    """`metrics.json` and `difference/000.png` ...: the candidate against the reference, image by image."""

    kind = "metrics"


class Comparison(Artifact):
    """`comparison.json`: the candidate against the further ones of `eval.compare`, in every metric, image by image."""

    kind = "comparison"
