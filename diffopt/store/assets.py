"""Files that ship inside the package, named `asset:PATH` wherever a recipe takes a path."""

import os
from pathlib import Path

PREFIX = "asset:"
ROOT = Path(__file__).parent.parent / "assets"


def locate(name: str) -> Path:
    """The path that a recipe's value names: inside the package for `asset:...`, else as written (~ expanded)."""
    return ROOT / name.removeprefix(PREFIX) if name.startswith(PREFIX) else Path(os.path.expanduser(name))
