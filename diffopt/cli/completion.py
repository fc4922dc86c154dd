"""Shell completion: Hydra completes overrides; this adds the sub-commands in front of them, and what follows one."""

import argparse
import os
from collections.abc import Iterable

from diffopt.cli.commands import COMMANDS


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
    if len(words) == 1 and first and (found := [c for c in COMMANDS if c.startswith(first)]):
        print(" ".join(found))
        return True
    if len(words) <= 1 and not first:
        print(" ".join([*COMMANDS, "+recipe="]))
        return True
    if first == "plan" and not words[-1].startswith("-"):
        os.environ["COMP_LINE"] = line.replace(" plan ", " ", 1)
        return False
    if first in COMMANDS:
        print(" ".join(c for c in _following(first, words[1:]) if c.startswith(words[-1])))
        return True
    return False


def _following(name: str, words: list[str]) -> Iterable[str]:
    """What may stand where the last of the words is; nothing where that is a file or a fingerprint."""
    if len(words) == 1 and COMMANDS[name].actions:
        return COMMANDS[name].actions
    if len(words) == 1 and name == "help":
        return COMMANDS
    module = COMMANDS[name].module
    parser: argparse.ArgumentParser = module.parser()
    below = parser._subparsers and parser._subparsers._group_actions[0].choices  # of argparse, which offers no list
    if isinstance(below, dict) and words[0] in below:
        parser = below[words[0]]
    flag = parser._option_string_actions.get(words[-2]) if len(words) > 1 else None
    if flag is not None and flag.choices:
        return list(flag.choices)
    if words[-1].startswith("-"):
        return [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    asked = getattr(module, "offered", None)
    return asked(words) if asked else ()
