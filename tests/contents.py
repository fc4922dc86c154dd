"""What a file of each format holds, as an artifact may have it."""

MACHINE = {"host": "h1", "cpu": "Test CPU 9000", "cores": 2, "gpus": []}
PIPELINE = {
    "source": "sha256:0", "family": "flux", "weights": "pretrained", "dtype": "float16", "scheduler": None, "components": {},
    "backbones": ["transformer"], "parameters": 500, "blocks": {}, "largest": None, "size_step": 16,
}  # fmt: skip
CHECKPOINT = {
    "family": "flux", "format": "nvfp4", "weight_bits": 8, "block_size": None, "rank": None, "rules": [], "algorithm": "max",
    "layers": [],
}  # fmt: skip
GRAPH = {
    "format": "int8_sq", "weights": "pretrained", "backbones": ["transformer"], "batch_size": 1, "opset": 20, "inputs": {},
    "profile": None, "quantized_layers": 3, "unused_layers": [], "quantized_products": 3, "operators": {}, "bytes": 900,
    "diffusers": "0.42.1",
}  # fmt: skip
PLAN = {
    "builder": "tensorrt_rtx", "version": "1.7.1", "target": "any GPU of 8.9", "profiles": [],
    "builder_optimization_level": 3, "bytes": 1900, "format": "int8_sq",
}  # fmt: skip
NATIVE = {
    "schema": "diffopt.native/1", "family": "flux", "format": "fp8", "backbones": ["transformer"], "source": "sha256:0",
    "weights": "pretrained", "dtype": "bfloat16", "layers": {"a": "fp8"}, "fell_back": {"b": "it is a convolution"},
    "bytes": 900, "bytes_in_16_bits": 1700, "versions": {"torch": "2.14.1"},
}  # fmt: skip
RULE = {"quantizer_name": "*weight_quantizer", "parent_class": "nn.Linear", "cfg": {"num_bits": 8, "axis": 0}}
MIXED = {**{k: v for k, v in CHECKPOINT.items() if k != "layers"}, "rules": [RULE], "mix": {"a": "fp8"}, "layers": ["a"]}
SHAPES = {"x": {"min": [1, 4], "opt": [2, 4], "max": [3, 4]}}
PART = {"file": "model.0.onnx", "reused": False, "inputs": ["x"], "outputs": ["out"], "entering": {"b": "a"}}
CUT = {k: v for k, v in GRAPH.items() if k != "diffusers"} | {
    "inputs": {"x": {"shape": [2, 4], "dtype": "float32"}},
    "profile": SHAPES,
    "reused": ["blocks.0"],
    "pieces": [PART | {"profile": SHAPES, "bytes": 5}],
    "diffusers": "0.42.1",
}
ADAPTER = {"name": "a.safetensors", "source": "sha256:1", "scale": 0.5, "backbone": None, "hits": {"transformer": 3}}


STAT = {"mean": 1.5, "low": None, "high": 2, "n": 1}
ABOUT = {"title": "PSNR", "unit": "dB", "better": "higher"}
SCORE = ABOUT | {"candidate": STAT, "values": [1, 2.5], "difference": STAT, "verdict": "a loss"}
SET = ABOUT | {"candidate": STAT, "verdict": "a distance"}
METRICS = {
    "schema": "diffopt.metrics/1",
    "prompts": ["a"],
    "metrics": {"z": SCORE | {"reference": STAT, "reference_values": [1, 2]}, "fid": SET},
    "difference_gain": 8,
}
BESIDE = {"name": "ptq", "title": "before", "metrics": {"fid": ABOUT | {"candidate": STAT, "compared": STAT}}}
FEWER = {"name": "fewer_steps", "title": "12 steps", "steps": 12, "arithmetic": 0.6, "computed": 0.5}
FEWER |= {"metrics": {"z": ABOUT | {"candidate": STAT, "compared": STAT, "difference": STAT, "verdict": "lost"}}}
EVALUATION = {
    "schema": "diffopt.evaluation/1", "reference": None, "models": ["a"], "prompts": ["p"], "left_out": [0], "problems": [],
    "metrics": {"z": ABOUT | {"weights": {}, "models": {"a": {"stat": STAT, "values": [None]}}, "order": []}},
}  # fmt: skip
EXPORTED = {
    "schema": "diffopt.export/1", "way": "hf", "source": "sha256:0", "artifacts": {"checkpoint": "b"}, "whole": True,
    "files": {"README.md": {"size": 5, "sha256": "0"}},
}  # fmt: skip
SAVED = {"hits": 1, "misses": 2, "computed": 0.5}
PICTURE = {"file": "000.png", "prompt": "p", "seed": 3}
DRAWN = {"runtime": "torch", "format": "fp8", "simulated": False}
TIMING = {"seconds_per_image": {"median": 1, "p10": 1, "p90": 2}, "milliseconds_per_step": None, "seconds_per_call": [1.0]}
TIMED = {
    "schema": "diffopt.latency/1", "runtime": "torch", "machine": MACHINE, "batch_size": 1, "steps": 2, "warmup": 1,
    "repeats": 3, "baseline": TIMING,
}  # fmt: skip
TRIED = {
    "value": 3, "metrics": {"psnr": SCORE}, "broken": None, "hits": 1, "misses": 2, "computed": 0.5, "margins": {"psnr": STAT},
    "keeps": True, "shown": False, "order": 1,
}  # fmt: skip
SEARCH = {
    "schema": "diffopt.cache-search/1", "method": "cachify", "knob": "every", "more": "higher", "low": 2.0, "high": 6.0,
    "floor": {"psnr": 30, "clip": "-0.5%"}, "prompts": 4, "steps": 20,
    "points": [TRIED, TRIED | {"metrics": {}, "margins": {}, "broken": "one colour"}],
    "cliffs": [{"after": 2, "before": 3, "kind": "jumps", "metric": None, "by": 0.2}],
    "chosen": TRIED, "limit": "floor", "reason": "the next value does not keep it",
}  # fmt: skip
RATIOS = {
    "schema": "diffopt.mag-ratios/1", "prompts": 2, "steps": 3, "ratios": {"transformer": {"cond": [1.0, 0.9]}},
    "deviation": {"transformer": {"cond": [0.0, 0.1]}},
}  # fmt: skip
RANGES = {
    "schema": "diffopt.ranges/1", "prompts": 4, "steps": 20,
    "inputs": [{
        "name": "a", "calls": 2, "calls_beyond": 1, "values": 64, "beyond": 3, "peak": 2.5, "energy": 9.0, "error": 1.5,
        "clipped": 1.0,
    }],
}  # fmt: skip
OF_LAYER = {"name": "blocks.0", "kind": "linear"}
MIX = {
    "schema": "diffopt.mix/1", "layers": [OF_LAYER | {"format": "fp8", "weights": 4, "error": 0.1}], "error": 0.1, "bits": 8.0,
    "time": None, "bytes": 4, "plain_bytes": 16, "gpu": None, "budget": {"bits": 8, "bytes": "20%", "time": None},
    "uniform": {"fp8": {"error": 0.1, "bits": 8.0, "time": None, "fits": True}},
}  # fmt: skip
SENSED = {
    "schema": "diffopt.sensitivity/1", "formats": ["fp8"], "prompts": 1, "steps": 2, "alpha": None,
    "layers": [OF_LAYER | {"weights": 4, "products": 2.0, "energy": [1.0, 2.0], "error": {"fp8": [0.1, 0.2]}}],
}  # fmt: skip
TRAINED = {
    "schema": "diffopt.training/1", "method": "qat", "steps": 1, "asked": 2, "items": 3, "skipped": 0, "prompts": 3,
    "trained": 9, "metric": "psnr", "losses": [{"step": 1, "loss": 0.1, "learning_rate": 0.0}],
    "validations": [{"step": 0, "score": 30.0}], "best": {"step": 0, "score": 30.0}, "teacher": None, "parallel": "single",
    "seconds": [0.1], "peak_bytes": [{"ram": 1}],
}  # fmt: skip
STEP = {"name": "load", "kind": "pipeline", "fingerprint": "0", "state": "made", "seconds": 0.1, "inputs": []}
RUN = {
    "schema": "diffopt.run/1", "name": "a", "overrides": [], "config": "model: {}", "notes": [], "wanted": ["load"],
    "steps": [STEP],
}  # fmt: skip
PARITY = {
    "schema": "diffopt.parity/1", "format": "fp8", "prompts": 1, "compiled": True,
    "steps": [{"relative_error": 0.01, "cosine": 0.9999}, {"relative_error": 0.02, "cosine": 0.999}], "expected": [0.01, 0.01],
    "layer_steps": [1, 2],
    "layers": [{"name": "a", "kind": "fp8", "steps": [{"relative_error": 0.0, "cosine": 1.0}]}], "latents": [0.01, 0.03],
    "pictures": 0.02, "psnr": [41.5],
}  # fmt: skip


def contender(name: str, title: str, milliseconds: float, beside: float | None = None, floor: float | None = None) -> dict:
    """Of a bench: so long a step, and `beside` times as fast as the base."""
    ratio = {"mean": beside, "low": beside and beside - 0.01, "high": beside and beside + 0.01, "n": 7}
    step = {"median": milliseconds, "p10": milliseconds - 0.5, "p90": milliseconds + 0.5}
    return {
        "name": name, "title": title, "opening": 9.5, "first_picture": 31.2,
        "seconds_per_image": {"median": milliseconds / 50, "p10": 1.0, "p90": 3.0}, "milliseconds_per_step": step,
        "seconds_per_call": [milliseconds / 50], "memory": {"weights": 12 << 30, "rest": 13 << 30, "call": 3 << 30},
        "over_base": beside and {"end_to_end": ratio, "per_step": ratio}, "over_eager": None,
        "floor": floor and {"milliseconds": floor, "times": milliseconds / floor}, "verdict": f"{title}: {beside}x",
    }  # fmt: skip


GPU_STATE = {
    "sm_clock": 1710, "max_sm_clock": 1980, "memory_clock": 3201, "power": 651.5, "power_limit": 700.0, "temperature": 61,
}  # fmt: skip
BENCHED = {
    "schema": "diffopt.bench/1", "format": "fp8", "dtype": "bfloat16", "machine": MACHINE | {"gpus": ["NVIDIA H200"]},
    "versions": {"torch": "2.11.0", "driver": None}, "before": GPU_STATE, "after": None, "batch_size": 1, "steps": 20,
    "warmup": 2, "repeats": 7, "encodes": False,
    "work": {"calls": 1.0, "kernel": 58e12, "linear": 1e12, "convolution": 0.0, "attention": 15e12},
    "rates": [{"kind": "plain", "shape": [4608, 3072, 21504], "flops": 7e14}],
    "base": "compiled",
    "contenders": [
        contender("eager", "eager BF16", 182.4, 0.72, 107.0),
        contender("compiled", "compiled BF16", 132.5, None, 107.0),
        contender("native", "native FP8", 94.2, 1.41, 65.0) | {"cache": SAVED},
    ],
    "headline": "native",
}  # fmt: skip
BENCHED["contenders"][2]["verdict"] = BENCHED["contenders"][2].pop("verdict")  # the order of the file
