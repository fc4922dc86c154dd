"""HTML pages: rendered from the templates here, with nothing to fetch from a network, published whole or not at all."""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from diffopt import __version__
from diffopt.files.json_file import typed
from diffopt.files.machine import Machine
from diffopt.report.columns import labelled
from diffopt.text import about_means, digits, few_values, machine, number, pace, size, with_interval

PAGE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
PREVIEW = 512
"""Pixels of the longer side. A larger picture is inlined as a JPEG of this size: 64 of 1024 x 1024 would be 300 MB."""
HEAD = 1 << 14  # bytes in which a PNG says how its camera was turned


def render(template: str, script: str = "", **content: Any) -> str:
    """A page from a template. Every value is escaped; of scripts the browser runs `script`, also of there, alone."""
    code = (TEMPLATES / script).read_text(encoding="utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    found: str = _templates().get_template(template).render(content, script=code, script_digest=digest)
    return labelled(found)


@cache
def _templates() -> Any:
    """The templates compiled, once for all jobs of a sweep."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    environment.filters |= {"size": size, "machine": _machine, "pace": pace, "about_means": about_means}
    environment.filters |= {"capitalize_first": lambda t: t[:1].upper() + t[1:], "lower_first": lambda t: t[:1].lower() + t[1:]}
    signs = (("with_interval", with_interval), ("number", number), ("few_values", few_values))
    for name, written in signs:  # a console may lack the sign
        environment.filters[name] = lambda *given, written=written: written(*given).replace("-", "\N{MINUS SIGN}")
    environment.globals |= {"picture": picture, "digits": digits, "version": __version__, "preview": PREVIEW}
    return environment


def breakable(name: str) -> Any:
    """A dotted name, as a layer's, that a narrow table may break at its dots and underscores."""
    from markupsafe import Markup, escape

    return Markup("<wbr>.").join(Markup("_<wbr>").join(map(escape, part.split("_"))) for part in name.split("."))


def _machine(about: Machine | Mapping[str, Any]) -> str:
    """Of a timing, or as a record has it."""
    return machine(about if isinstance(about, Machine) else typed(Machine, about))


def picture(path: Path, limit: int = PREVIEW) -> dict[str, Any]:
    """A PNG for the page: `uri` with the data in it, `width` and `height` in pixels, and whether it was made smaller."""
    data, kind = path.read_bytes(), "png"
    width, height = _extent(data)
    smaller = max(width, height) > limit
    if smaller:
        from PIL.Image import Resampling

        from diffopt.data.picture import opened

        out, kind = BytesIO(), "jpeg"
        image = opened(BytesIO(data))
        image.thumbnail((limit, limit), Resampling.LANCZOS)
        image.save(out, "JPEG", quality=90)
        data = out.getvalue()
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"uri": uri, "width": width, "height": height, "smaller": smaller}


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, of the upright picture; of what is no plain PNG, by Pillow."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head[:4] == b"\x89PNG" and b"eXIf" not in head:
        return _extent(head)
    from diffopt.data.picture import extent

    return extent(path)


def _extent(head: bytes) -> tuple[int, int]:
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")  # IHDR, which comes first
