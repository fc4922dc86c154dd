"""The support matrix of the manual, made of what tests/test_matrix.py found: `make matrix` writes both."""

import json
from pathlib import Path
from typing import Any

FORMATS = ("int8", "int8_sq", "fp8", "int4_awq", "w4a8_awq", "nvfp4", "nvfp4_svdquant", "mxfp8")
STEPS = {"calibrate": "quantize", "export": "export", "build": "build", "run": "sample"}
"""A step of the matrix, and the stage whose artifact shows it."""
ALL = (*STEPS, "cache")
LETTERS = {"huggingface": "H", "comfyui": "U", "svdquant": "V", "nunchaku": "N"}
"""Of a target, in the cells of what is read back from it as it was scored."""
HERE = Path(__file__).parent
FOUND, PAGE = HERE / "matrix.json", HERE.parent / "diffopt" / "models" / "README.md"
CELLS: dict[str, dict[str, dict[str, Any]]] = {}
"""What this process has found: family -> format -> step -> true, or the line that refused it."""
TARGETS: dict[str, dict[str, str]] = {}
"""Family -> format -> the `export=` that were read back as they were scored. The others were refused."""
BEGIN, END = "<!-- matrix: written by `make matrix` -->", "<!-- matrix ends -->"


def write(results: dict[str, Any], where: str) -> None:
    """Write what was found, cells or targets or both, into matrix.json, and its table into the page of models."""
    FOUND.write_text(json.dumps(json.loads(FOUND.read_text()) | {"where": where} | results, indent=1) + "\n")
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(json.loads(FOUND.read_text()))}{END}{rest.partition(END)[2]}")


def table(found: dict[str, Any]) -> str:
    """One row a family, one column a format, in a cell the steps that passed; below it the reasons of those that cannot."""
    reasons: list[str] = []
    rows = ["| |" + "".join(f" `{name}` |" for name in FORMATS), "|---|" + "---|" * len(FORMATS)]
    for family, cells in found["cells"].items():
        targets = found.get("targets", {}).get(family, {})
        told = [_cell(cells.get(name), reasons) + _letters(targets.get(name, "")) for name in FORMATS]
        rows.append(f"| {family} |" + "".join(f" {x} |" for x in told))
    notes = [f"{i}. {reason}" for i, reason in enumerate(reasons, 1)]
    return "\n".join([*rows, "", *notes, *([""] if notes else []), f"Tiny random models on a CPU ({found['where']})."]) + "\n"


def _letters(kinds: str) -> str:
    """Of the targets that take it; the plan tells why the others do not."""
    return "".join(letter for kind, letter in LETTERS.items() if kind in kinds.split())


def _cell(cell: dict[str, Any] | None, reasons: list[str]) -> str:
    """Initials of the steps that pass, and a note's number for each that does not; nothing of what was not tried."""
    if cell is None:
        return ""
    parts = []
    for step in ALL:
        if cell[step] is True:
            parts.append(step[0].upper() if step != "cache" else "K")
            continue
        if cell[step] not in reasons:
            reasons.append(cell[step])
        parts.append(f"<sup>{reasons.index(cell[step]) + 1}</sup>")
    return "".join(parts)
