"""diffopt: declarative recipes that make diffusion models small and fast, with the evidence."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffopt.errors import DiffoptError
    from diffopt.report.outcome import Outcome

__version__ = "0.1.0"
__all__ = ["DiffoptError", "compile", "load", "run"]


def run(
    recipe: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    config_dir: str | PathLike[str] | None = None,
    quiet: bool = False,
) -> "Outcome | None":
    """Run a recipe as `diffopt +recipe=RECIPE key=value ...` does, and return the run: `.artifacts` by step, `.metrics` by
    name, the path of its `.report`, its `.directory`.

    `overrides` are fields and options by name: `{"calib.alpha": 0.5, "format": "fp8", "cache": None}`. `config_dir` is a
    directory of your own groups and recipes. The lines that the command would print go to sys.stdout, unless `quiet`.

    Raises `diffopt.DiffoptError` for all that the command refuses or stops at, with its text. Where several machines train
    together, None on all but the first. The working directory, Hydra's state and logging are left as they were.
    """
    from diffopt.cli import call

    return call.run(recipe, overrides or {}, Path(config_dir).expanduser() if config_dir is not None else None, quiet)


def compile(
    backbone: Any,
    model_id: str,
    onnx_path: str | PathLike[str] | None = None,
    engine_path: str | PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    cuda_graph: bool = False,
    config_dir: str | PathLike[str] | None = None,
) -> Any:
    """An engine plan in the place of a backbone, by TensorRT, or by TensorRT-RTX where only that is installed.

    `backbone` is a module of diffusers, plain or quantized by Model-Optimizer, or a pipeline, whose backbones are replaced in
    it; what is returned is the module that takes its place, or the pipeline. `model_id` is an option of `model`, `overrides`
    are fields by name: `{"model.height": 512, "export.max_batch_size": 4}`, or `{"cache": "cachify"}` for a pipeline whose
    graph is to be cut. The graph is written to `onnx_path` and the plan to `engine_path`; what is there is used, so that a
    plan needs no graph and a graph no weights. Without a path it is not kept. `.close()` of the module ends it.

    Raises `diffopt.DiffoptError` where no plan runs, for a directory of something else, and for what cannot be exported.
    """
    from diffopt.cli import call
    from diffopt.jobs import compiled_backbone

    folder = Path(config_dir).expanduser() if config_dir is not None else None
    choices = call.choices(overrides or {}, folder, f"model={model_id}", "export=tensorrt")
    paths = (Path(p).expanduser() if p is not None else None for p in (onnx_path, engine_path))
    return compiled_backbone.compile(backbone, choices, *paths, cuda_graph=cuda_graph)


def __getattr__(name: str) -> Any:
    """`diffopt.DiffoptError`, without Hydra for who does not ask for it."""
    if name == "DiffoptError":
        from diffopt.errors import DiffoptError

        return DiffoptError
    raise AttributeError(f"module 'diffopt' has no attribute {name!r}")


def load(directory: str | PathLike[str], device: Any = None, dtype: Any = None) -> Any:
    """A backbone that `export=native` has packed, as a module of diffusers that computes in few bits: a pipeline's
    `transformer` or `unet`.

    It is read straight to `device`, the first GPU where there is one, else the CPU, which is slow; nothing is calibrated, and
    never is there a full-precision copy. `dtype` is that of what is not quantized, and can only be the one that it was packed
    in. A directory of several backbones gives a dict by name, and that of one of them the module.

    Raises errors of `diffopt.errors` for a directory that is none of these, and for a GPU without such kernels.
    """
    import torch

    from diffopt.kernels.load import load

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    named = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return load(Path(directory).expanduser(), torch.device(device), named)
