"""What diffopt is installed with: its exact versions, their licences, and what is known against them.

    python tests/supply_chain.py lock         # write tests/constraints.txt of what is installed here
    python tests/supply_chain.py licences     # of all that tests/constraints.txt names and is installed
    python tests/supply_chain.py advisories   # by pip-audit; --osv URL asks another service than PyPI
    python tests/supply_chain.py build dist   # the wheel and the sdist, twice: their bytes have to be the same

Exit code 1 where something has to be looked at. Without a service of advisories that is said, and is no failure.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path(__file__).parent / "constraints.txt"
EXTRAS = ("tensorrt-rtx", "dev")
"""Those that `make` installs."""
HEAD = """\
# The exact versions that `make` installs, written by `make lock` with Python {}.{}. Whoever installs diffopt as a library is
# held to pyproject.toml alone.
"""
COPYLEFT = re.compile(r"\b(AGPL|GPL|SSPL)|(?<!Lesser )General Public License|Affero")
CLOSED = re.compile(r"proprietary", re.IGNORECASE)
VENDOR = re.compile(r"nvidia|cuda|tensorrt|cudnn")
"""Of packages that are NVIDIA's, whose licence lets them be used and not passed on: diffopt passes on none of them."""
ACCEPTED: dict[str, str] = {}
"""Advisories by number, and why they do not concern diffopt."""


def needed() -> dict[str, Distribution]:
    """What is installed of diffopt, its extras, and of all that those need."""
    found: dict[str, Distribution] = {}
    pending = [(f"diffopt[{','.join(EXTRAS)}]", "")]
    seen = set()
    while pending:
        requirement = Requirement(pending.pop()[0])
        name = canonicalize_name(requirement.name)
        try:
            there = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"supply chain: {requirement} is not installed; make does it")
        found[name] = there
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                pending += [(str(r), extra) for r in _wanted(there, extra)]
    del found["diffopt"]
    return dict(sorted(found.items()))


def _wanted(there: Distribution, extra: str) -> Iterator[Requirement]:
    for line in there.requires or ():
        found = Requirement(line)
        if found.marker is None or found.marker.evaluate({"extra": extra}):
            found.marker = None
            yield found


def lock() -> None:
    lines = [f"{name}=={there.version.partition('+')[0]}" for name, there in needed().items()]
    LOCK.write_text(HEAD.format(*sys.version_info[:2]) + "\n".join(lines) + "\n")
    print(f"{LOCK.name}: {len(lines)} packages")


def locked() -> dict[str, str]:
    rows = [line.split("==") for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    return {row[0]: row[1] for row in rows}


def licences() -> None:
    command = [sys.executable, "-m", "piplicenses", "--format=json", "--from=mixed", "--packages", *locked()]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    bad = []
    for row in rows:
        name, licence = row["Name"], row["License"]
        if COPYLEFT.search(licence) and not re.search(r"\bOR\b|LGPL|Lesser", licence):
            bad.append(f"{name} {row['Version']}: {licence}, which binds what it is used in")
        elif CLOSED.search(licence) and not VENDOR.search(name.lower()):
            bad.append(f"{name} {row['Version']}: {licence}, of another than NVIDIA")
    print("\n".join(bad) or f"licences: {len(rows)} packages, none that binds diffopt")
    sys.exit(bool(bad))


def advisories(*service: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(LOCK.read_text())
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", file.name, "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
        if service:
            command += ["--vulnerability-service", "osv", "--osv-url", service[0]]
        done = subprocess.run(command, capture_output=True, text=True)
    try:
        rows = json.loads(done.stdout)["dependencies"]
    except ValueError:
        why = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"advisories: not run, no service answers ({why[:160]})")
        return
    known = [row for row in rows if "vulns" in row]
    if not known:
        print(f"advisories: not run, the service knows none of {len(rows)} packages ({rows[0].get('skip_reason', '')})")
        return
    bad = [
        f"{row['name']} {row['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version yet'}"
        for row in known
        for found in row["vulns"]
        if not {found["id"], *found["aliases"]} & {*ACCEPTED}
    ]
    print("\n".join(bad) or f"advisories: none for {len(known)} of {len(rows)} packages")
    sys.exit(bool(bad))


def build(out: Path) -> None:
    """With the date of the last commit, from two copies of the code whose files have other dates and modes."""
    root, sums = LOCK.parent, []
    date = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=root, capture_output=True, text=True).stdout.strip()
    for number in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / f"copy{number}"
            shutil.copytree(
                root, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", "outputs", "dist", ".*_cache")
            )
            for path in copy.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    os.utime(path, (number * 10**9,) * 2)
                    path.chmod(0o644 if number == 1 else 0o664)
            command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
            subprocess.run(
                command, env=os.environ | {"SOURCE_DATE_EPOCH": date or "1577836800"}, check=True, stdout=subprocess.DEVNULL
            )
        found = [p for p in sorted(out.glob("diffopt-*")) if p.suffix in (".whl", ".gz")]
        sums.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in found})
    if other := sorted(name for name in sums[1] if sums[0].get(name) != sums[1][name]):
        sys.exit(f"build: the bytes of {', '.join(other)} differ from build to build")
    print("\n".join(f"{name}  sha256 {digest}" for name, digest in sums[1].items()))


def main() -> None:
    match sys.argv[1:]:
        case ["lock"]:
            lock()
        case ["licences"]:
            licences()
        case ["advisories"]:
            advisories()
        case ["advisories", "--osv", url]:
            advisories(url)
        case ["build", out]:
            build(Path(out))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
