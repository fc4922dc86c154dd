"""The prompt sets that the field quotes, by name: where each is on the hub, and the form of its own file."""

import csv
from collections.abc import Iterable
from io import StringIO
from typing import Any

HUB_COLUMNS = {
    "drawbench": "hub:sayakpaul/drawbench:Prompts",  # 200 prompts; Saharia et al. 2022
    "coco": "hub:phiyodr/coco2017:captions",  # the first caption of each picture of 2017's training set; Lin et al. 2014
}
HUB_FILES = {
    "partiprompts": ("nateraw/parti-prompts", "PartiPrompts.tsv"),  # 1,632 prompts; Yu et al. 2022
    "mjhq": ("playgroundai/MJHQ-30K", "meta_data.json"),  # 30,000 prompts; Li et al. 2024
}
PACKAGED = {
    "embedded": "asset:prompts/evaluation.txt",  # the 64 captions of conf/eval/images.yaml
    "emoji_names": "asset:prompts/emoji_names.txt",  # those of conf/eval/emoji.yaml without a style, so of no trained picture
}
NAMES = (*PACKAGED, *HUB_COLUMNS, *HUB_FILES)
"""Each stands for itself (`drawbench`), and with a copy of its own file for that (`drawbench:FILE`)."""
COLUMNS = ("prompt", "prompts", "caption", "text")
"""What the column of prompts is called in a table, in any case; the first of these that is there."""


def split(value: str) -> tuple[str, str]:
    """The set's name and the file of `NAME:FILE`; both empty where the value names no set."""
    name, _, file = value.partition(":")
    return (name, file) if name in NAMES else ("", "")


def from_table(text: str, delimiter: str) -> list[str]:
    """The prompts of a CSV or TSV with a header: DrawBench's and PartiPrompts' own form. Raises ValueError."""
    rows = csv.DictReader(StringIO(text, newline=""), delimiter=delimiter)
    named = {(name or "").strip().lower(): name for name in rows.fieldnames or []}
    column = next((named[c] for c in COLUMNS if c in named), None)
    if column is None:
        there = ", ".join(rows.fieldnames or []) or "no header"
        raise ValueError(f"has no column of prompts among {there}; call one Prompt")
    try:
        return [(row[column] or "").strip() for row in rows]
    except csv.Error as e:
        raise ValueError(f"is not a table that can be read ({e}); mend the file") from None


def from_object(content: dict[str, Any]) -> list[str] | None:
    """The prompts of MJHQ's meta_data.json and of COCO's captions_*.json, of which the first caption of each picture.

    None where it is neither.
    """
    if isinstance(annotations := content.get("annotations"), list):
        first: dict[Any, str] = {}
        for row in annotations:
            if isinstance(row, dict) and isinstance(row.get("caption"), str):
                first.setdefault(row.get("image_id"), row["caption"].strip())
        return [*first.values()]
    return _texts(content.values())


def _texts(rows: Iterable[Any]) -> list[str] | None:
    found = [row.get("prompt") if isinstance(row, dict) else None for row in rows]
    texts = [p.strip() for p in found if isinstance(p, str)]
    return texts if texts and len(texts) == len(found) else None
