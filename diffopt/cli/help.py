"""`diffopt help`: the list of commands, groups and recipes, or the flags of one command."""

from diffopt.cli.arguments import Parser
from diffopt.errors import ConfigError
from diffopt.groups.validate import nearest


def parser() -> Parser:
    made = Parser("diffopt help", description="What diffopt does, or one of its commands.")
    made.add_argument("name", nargs="*", metavar="COMMAND", help="`diffopt help store export` too")
    return made


def command(arguments: list[str]) -> None:
    """Raises ConfigError for what is no command."""
    from diffopt.cli import main
    from diffopt.cli.commands import COMMANDS

    words = parser().parse_args(arguments).name
    if not words:
        main.overview()
        return
    if words[0] not in COMMANDS:
        raise ConfigError(f"diffopt help: no such command (got {words[0]!r}); {nearest(words[0], COMMANDS)}")
    COMMANDS[words[0]]([*words[1:], "--help"])
