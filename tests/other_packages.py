"""Packages of others that extend diffopt, where some are installed: the tests are of our own parts, and find none of them.

Of two installed packages of one name Python takes the one that is found first: an empty one stands before each of them.
"""

import atexit
import os
import shutil
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path


def others() -> list[str]:
    """Names of those that are found."""
    found = {}
    for package in distributions():  # the one that is found first is first
        found.setdefault(package.name, package)
    extend = [n for n, package in found.items() if any(p.group.startswith("diffopt.") for p in package.entry_points)]
    return sorted(n for n in extend if n != "diffopt")


def hide(folder: Path | None = None) -> None:
    """Hide them, from this process and from those that it starts."""
    if not (names := others()):
        return
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="diffopt-tests-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in names:
        about = folder / f"{name.replace('-', '_')}-0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
