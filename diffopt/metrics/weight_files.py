"""Which files the models that score have in their directories. Imports no library that reads them."""

import json
from pathlib import Path

OPEN_CLIP = "open_clip_config.json"
IMAGEREWARD, BLIP = "ImageReward.pt", "med_config.json"


def lacking(source: str, path: Path) -> str | None:
    """What `path` lacks to be the model `source`, one of SOURCES, as `what is wrong (got X); what to do`, or None."""
    if source == "imagereward":
        missing = [name for name in (IMAGEREWARD, BLIP) if not (path / name).is_file()]
        advice = "put both there from https://huggingface.co/THUDM/ImageReward"
        return f"has no {' and no '.join(missing)} (got {str(path)!r}); {advice}" if missing else None
    if not any((path / name).is_file() for name in ("config.json", OPEN_CLIP)):
        return f"has neither config.json nor {OPEN_CLIP} (got {str(path)!r}); give a model's directory"
    return None


def reads_texts(path: Path) -> bool:
    """Whether the model in a directory is a CLIP, by its configs; not a model of pictures alone."""
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    return kind == "clip" or (path / OPEN_CLIP).is_file()
