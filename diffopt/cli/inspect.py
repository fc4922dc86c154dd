"""`diffopt inspect`: what is found of a pipeline that has no family file, to read, mend and check in; and what a file of
weights or a backbone alone is."""

from pathlib import Path
from typing import Any

from diffopt import models
from diffopt.cli import weights
from diffopt.cli.arguments import Parser
from diffopt.errors import ConfigError
from diffopt.files.found import Found
from diffopt.files.json_file import plain
from diffopt.machine.output import to_log
from diffopt.store.composed import INDEX

WIDE = 12
NO_ATTENTION = "cannot be quantized: Model-Optimizer does not know its class, or it has no softmax"


def parser() -> Parser:
    made = Parser(
        "diffopt inspect",
        description="What model=auto finds of a pipeline, or what weights are. Of them it reads headers alone.",
    )
    made.add_argument("path", type=Path, help="a pipeline's directory, as save_pretrained writes it, a backbone's, or a file")
    made.add_argument(
        "--yaml", action="store_true", help="as a model option: put it into DIR/model/NAME.yaml, for --config-dir DIR"
    )
    return made


def command(arguments: list[str]) -> None:
    """Raises ConfigError for what is neither, and PlanError for a pipeline that cannot be found out."""
    given = parser().parse_args(arguments)
    if not given.path.exists():
        raise ConfigError(f"diffopt inspect: is not there (got {str(given.path)!r}); give a pipeline's directory, or a file")
    if given.path.is_file() or not (given.path / INDEX).is_file():
        with to_log():
            rows = weights.told(given.path)
        print("\n".join(f"{name:{WIDE}}{value}" for name, value in rows.items()))
        return
    with to_log():  # what libraries say while they are loaded and run
        from diffopt.finding.find import find

        found = find(given.path)
    print(option(given.path, found) if given.yaml else "\n".join(told(found)))


def told(found: Found) -> list[str]:
    """A line for each thing that is known, in a user's words."""
    written = [n for n in models.names() if found.pipeline in (f := models.family(n)).aliases or f.opened(found.pipeline)]
    lost = {"unreached": f"{', '.join(found.unreached)}: its pipeline never fills what leads there, so they are kept too"}
    rows: dict[str, str] = {
        "pipeline": found.pipeline
        + (f", the family {written[0]}, which is written: choose a model=OPTION of it" if written else ""),
        "backbones": f"{', '.join(found.backbones)} ({found.backbone_class})",
        "blocks": ", ".join(found.blocks),
        "kept": f"{', '.join(found.keep)}, in full precision in every format",
        **(lost if found.unreached else {}),
        **({"unfilled": found.waiting} if found.waiting else {}),
        "attention": "can be quantized" if found.attention else NO_ATTENTION,
        "guidance": {
            "none": "none, or within the model",
            "batched": "as more rows of one backbone call",
            "separate": "as a backbone call of its own",
        }[found.guidance],
        "calls": f"{found.calls} of the backbone in a denoising step, without guidance",
        "size": f"multiples of {found.size_step} pixels" + (f", 1 + n x {found.frame_step} frames" if found.frame_step else ""),
        "prompts": ", ".join(f"{n} {_shape(x)}" for n, x in found.texts.items()),
        "inputs": ", ".join(f"{n} {_shape(x)}" for n, x in found.inputs.items()) if found.inputs else "not known",
        "export": f"no: {found.reasons['export']}" if "export" in found.reasons else "yes",
        "training": f"no: {found.reasons['train']}" if "train" in found.reasons else "yes, by the scheduler's prediction type",
        "caches": "cachify, " + ("and those of diffusers" if found.block_cache else "not those of diffusers"),
    }
    return [f"{name:{WIDE}}{value}" for name, value in rows.items()]


def option(path: Path, found: Found) -> str:
    """A file of the group `model`."""
    import yaml

    given: dict[str, Any] = {"family": models.AUTO.name, "source": str(path), "weights": "pretrained", "dtype": "bfloat16"}
    given |= {"scheduler": None, "height": 64 * found.size_step, "width": 64 * found.size_step}
    given |= {"frames": 1 + 4 * found.frame_step} if found.frame_step else {}
    takes = {*found.arguments.values()}
    given |= {"guidance_scale": 4.0} if "guidance_scale" in takes else {}
    given |= {"max_sequence_length": found.tokens} if "max_sequence_length" in takes else {}
    given["found"] = plain(found)
    head = f"# {found.pipeline}, as diffopt found it. Set height, width and guidance_scale to what it was trained for.\n"
    text: str = yaml.safe_dump(given, sort_keys=False, width=128, default_flow_style=None)
    return head + text.rstrip()


def _shape(template: Any) -> str:
    return (
        f"[{', '.join(map(str, template['shape']))}]" if isinstance(template, dict) and "shape" in template else str(template)
    )
