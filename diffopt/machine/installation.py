"""How diffopt itself is installed: its stages are found by entry points, which only installing writes."""

import json
from collections.abc import Iterable
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution
from pathlib import Path
from pkgutil import iter_modules
from urllib.parse import unquote, urlparse

CODE = Path(__file__).parent.parent
"""The package that runs."""
STAGES = "diffopt.stages"


def flaw(points: Iterable[EntryPoint]) -> str | None:
    """A line for the user where the entry points of the group `diffopt.stages` are not those of this code; else None."""
    found = {p.value.removeprefix(f"{STAGES}.").partition(":")[0] for p in points if p.value.startswith(f"{STAGES}.")}
    there = [m.name for m in iter_modules([str(CODE / "stages")])]
    if not found:
        return f"diffopt: is not installed, so it has no stages (got the code in {CODE} alone); {_advice()}"
    lost, gone = [n for n in there if n not in found], sorted(found.difference(there))
    if not lost and not gone:
        return None
    differ = [f"lacks the stage{'s' * (len(lost) > 1)} {', '.join(lost)}"] if lost else []
    differ += [f"has {', '.join(gone)}, which this code has not"] if gone else []
    where = installed()
    which = f"that of {where}" if where and where != CODE else "an older one"
    got = f"{which}: it {' and '.join(differ)}"
    return f"diffopt: another version is installed than the code in {CODE} (got {got}); {_advice()}"


def others(points: Iterable[EntryPoint]) -> list[EntryPoint]:
    """Those of packages of others."""
    return [p for p in points if not p.value.startswith(f"{STAGES}.")]


def installed() -> Path | None:
    """The package that is installed, which need not be the one that runs; None where none is."""
    try:
        about = distribution("diffopt")
    except PackageNotFoundError:
        return None
    return _linked(about) or Path(str(about.locate_file("diffopt"))).resolve()


def _linked(about: Distribution) -> Path | None:
    """Of an editable installation the package in the checkout, as pip has written it down."""
    text = about.read_text("direct_url.json")
    content = json.loads(text) if text else {}
    if not content.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(content["url"]).path)) / "diffopt"


def _advice() -> str:
    root = CODE.parent
    return f"pip install --editable {root}" if (root / "pyproject.toml").is_file() else "pip install --force-reinstall diffopt"
