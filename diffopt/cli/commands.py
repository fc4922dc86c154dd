"""The sub-commands, in one table: what main calls, what `--help` lists and what a shell completes.

A module is imported when its command is called; its `parser` tells the flags, and `command` does the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    name: str
    usage: str
    """What follows the name, for `--help`."""
    about: str
    actions: tuple[str, ...] = ()
    """Words of which one follows the name: parsers of their own."""

    @property
    def module(self) -> Any:
        return import_module(f"diffopt.cli.{self.name}")

    def __call__(self, arguments: list[str]) -> None:
        self.module.command(arguments)

    @property
    def line(self) -> str:
        """Of `--help`."""
        return f"{f'diffopt {self.name} {self.usage}'.rstrip():53} {self.about}".rstrip()


def _table(commands: Sequence[Command]) -> dict[str, Command]:
    return {c.name: c for c in commands}


COMMANDS = _table(
    (
        Command("ls", "[GROUP ...] [--json]", "the recipes, and every group's options, a line each"),
        Command("plan", "+recipe=NAME [key=value ...]", "its steps: cached or to run, and why; --multirun: a sweep's jobs"),
        Command(
            "inspect", "PATH [--yaml]", "what model=auto finds of a pipeline, as an option to mend; what a file of weights is"
        ),
        Command("copy", "RECIPE FILE [key=value ...]", "a recipe of your own, with every value written out"),
        Command("report", "DIRECTORY [--floor clip=-0.5% ...]", "write the page of a run or a sweep again; what to ship"),
        Command("eval", "--data-path images.json --metrics NAME...", "score pictures of any models: one table, with intervals"),
        Command(
            "store",
            "ls | show ID | verify | gc | pin RUN | unpin RUN | import DIR | export ID DIR [--as hf] | sources",
            "",
            ("ls", "show", "verify", "gc", "pin", "unpin", "import", "export", "sources"),
        ),
        Command("doctor", "", "what this machine can calibrate, build and run"),
        Command("help", "[COMMAND]", "this list, or the flags of a command"),
    )
)


def lines() -> str:
    """Of `--help`, a command each."""
    return "\n".join(c.line for c in COMMANDS.values())
