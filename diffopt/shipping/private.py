"""What leaves this machine says nothing of it: local paths become their last name, tokens and passwords are left out."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

LEFT_OUT = "(left out)"
SECRET = re.compile(r"(?i)(^|_|\b)(token|secret|password|passwd|api_?key|access_?key|credentials?)(_|\b|$)")
"""Names of fields whose values are nobody's business."""
TOKEN = re.compile(r"\b(hf_|api_org_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA)[A-Za-z0-9_-]{8,}")
LOGIN = re.compile(r"(\w+://)[^/\s@]+@")
"""A URL's user and password."""
QUOTED = re.compile(r"""(["'])((?:~\w*|\.{1,2})?/[^"'\n]*)\1""")
BARE = re.compile(r"(?<![\w.:/@~-])(?:~\w*|\.{1,2})?/(?:[^\s/'\"`,:;\[\]{}()<>|]+/?)+")


def text(value: str, places: Iterable[Path] = ()) -> str:
    """Of a text that may have paths in it. `places` are directories of this machine that it may name."""
    found = value
    for place in sorted({str(p) for p in places if len(p.parts) > 1}, key=len, reverse=True):
        found = re.sub(re.escape(place) + r"(?=$|[/\s'\"`,:;\])}])", "...", found)
    found = LOGIN.sub(r"\1", TOKEN.sub(LEFT_OUT, found))
    found = QUOTED.sub(lambda m: f"{m[1]}{_last(m[2])}{m[1]}", found)
    return BARE.sub(lambda m: _last(m[0]), found)


def override(value: str) -> str:
    """Of `key=value`, as it was given for a run."""
    key, equals, given = value.partition("=")
    if not equals:
        return text(value)
    return f"{key}={_leaf(key.rpartition('.')[2], given)}"


def config(content: str) -> str:
    """A recipe as composed, YAML, without what says where things lie here."""
    found = yaml.safe_load(content)
    found.pop("store", None)
    written: str = yaml.safe_dump(_plain(found), sort_keys=False, allow_unicode=True, width=120)
    return written


def _plain(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _plain(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, name) for v in value]
    return _leaf(name, value) if isinstance(value, str) else LEFT_OUT if value and SECRET.search(name) else value


def _leaf(name: str, value: str) -> str:
    if SECRET.search(name):
        return LEFT_OUT
    if re.match(r"(?:~|\.{1,2}/|/)[^\n]*$", value):  # a path, which may have spaces
        return _last(value)
    return text(value)


def _last(path: str) -> str:
    return Path(path).name or "..."
