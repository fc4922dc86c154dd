"""Shell completion: Hydra completes overrides; this adds the sub-commands in front of them."""

import os

SUBCOMMANDS: dict[str, list[str]] = {
    "plan": [],
    "report": [],
    "eval": [],
    "store": ["ls", "show", "verify", "gc", "export"],
    "doctor": [],
}


def complete(arguments: list[str]) -> bool:
    """Answer a shell's question where it is about sub-commands; False leaves it, rewritten, to Hydra.

    The shell asks by `diffopt -sc query=SHELL` with the line so far in COMP_LINE.
    """
    if not any(a.startswith("query=") for a in arguments):
        return False
    line = os.environ.get("COMP_LINE", "")
    line = line.replace("python -m diffopt", "diffopt", 1)
    words = line.split()[1:] + ([""] if line.endswith(" ") or len(line.split()) == 1 else [])
    first = words[0] if words else ""
    if len(words) == 1 and first and (found := [c for c in SUBCOMMANDS if c.startswith(first)]):
        print(" ".join(found))
        return True
    if len(words) <= 1 and not first:
        print(" ".join([*SUBCOMMANDS, "+recipe="]))
        return True
    if first == "plan":
        os.environ["COMP_LINE"] = line.replace(" plan ", " ", 1)
        return False
    if first in SUBCOMMANDS:
        print(" ".join(c for c in SUBCOMMANDS[first] if c.startswith(words[-1])) if len(words) == 2 else "")
        return True
    return False
