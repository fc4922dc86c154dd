"""Hydra's and OmegaConf's errors as lines of our own: what is wrong, what was given, what there is."""

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from diffopt.cli.searchpath import recipe_dirs
from diffopt.errors import DiffoptError
from diffopt.groups import GROUPS, PICKS
from diffopt.groups.validate import nearest

UNREADABLE = ("mismatched input", "no viable alternative", "token recognition error", "extraneous input", "missing EQUAL")
"""How Hydra's grammar begins to say that it cannot read an override."""


def line(error: Exception, arguments: list[str]) -> str:
    """The text for the user; an error of ours is already one."""
    if isinstance(error.__cause__, DiffoptError):  # of a callback's, which Hydra says is one of a call to a target
        error = error.__cause__
    text = str(error)
    if found := re.search(r"Could not find '([\w./-]+)'", text):
        return _no_option(found[1], text)
    if found := re.search(r"In '([^']*)': Could not find '([^']+)'", text):
        return _no_option(found[2], text)
    if found := re.search(r"In '([^']*)': Could not load '([\w./-]+)'", text):
        known = [p.stem for d in recipe_dirs() for p in d.glob("*.yaml")]
        there = nearest(found[2].rpartition("/")[2], known) if found[2].startswith("recipe/") else "mend its defaults"
        return f"{found[1]}: extends what is not there (got {found[2]!r}); {there}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return _no_key(found[1], _given(found[1], arguments))
    if "Multiple values for" in text and (found := re.search(r"Multiple values for (\w+)", text)):
        return f"{found[1]}: is chosen twice (got it as an override); choose once"
    if re.search(rf"LexerNoViableAltException|{'|'.join(UNREADABLE)}", text):
        asked = (a for a in arguments if not a.startswith("-") and a != "plan")
        bad = next((a for a in asked if not _parses(a)), text.splitlines()[0])
        return f"override: cannot be read (got {bad}); write key=value, and quote odd characters: 'key=\"a, b\"'"
    if found := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        return f"{found[1]}: reads as several values (got {found[2]}); quote one, list them as [a,b], or sweep with --multirun"
    cause = error.__cause__
    if "ListConfig" in str(cause) and (found := re.search(r"Error merging override ([^=]+)=(.*)", text)):
        return f"{found[1]}: is a list in the recipe (got {found[2]}); write it as one: [{found[2]}]"
    lines = [x for x in text.strip().splitlines() if x.strip() and "HYDRA_FULL_ERROR" not in x]
    if cause and str(cause) not in text:
        lines.append(str(cause).splitlines()[0])
    return "\n".join(lines)


def of_launcher(error: Exception) -> str | None:
    """For what joblib, submitit or Ray raise when a process ended before its job did; None for other errors."""
    library = type(error).__module__.partition(".")[0]
    if library not in ("joblib", "submitit", "ray"):
        return None
    said = next((x.strip() for x in str(error).splitlines() if x.strip()), "nothing")
    return (
        f"sweep: {library} lost a process before its job ended, perhaps to a lack of memory (got {type(error).__name__}: "
        f"{said[:200]}); fewer at once need less (DIFFOPT_JOBS=1); the same command goes on from what is in the store"
    )


def _parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def unknown_command(word: str, commands: list[str]) -> str:
    """For `diffopt plna`, and for a recipe named without `+recipe=`."""
    return f"diffopt: no such command (got {word!r}); {nearest(word, commands)}  To run a recipe: diffopt +recipe={word}"


def _no_option(what: str, text: str) -> str:
    group, _, option = what.rpartition("/")
    there = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
    if not group:
        return f"{what}: no such config (got {what!r}); `diffopt --help` lists the groups"
    if not there:
        return f"{group}: has no options yet (got {option!r}); drop it"
    return f"{group}: no such option (got {option!r}); {nearest(option, there)}"


def _no_key(key: str, given: str) -> str:
    if key == "recipe":
        return f"recipe: is added to the config, so with a plus (got recipe={given}); +recipe={given}"
    group, _, name = key.partition(".")
    if given.startswith("{") and group in GROUPS and name.partition(".")[0] in GROUPS[group].fields():
        return f"{key}: gives a key that there is none of in this recipe (got {given}); add it with a plus: '+{key}={given}'"
    if group in GROUPS and name in GROUPS[group].fields():
        reader = GROUPS[group].reader(name) or "another option of the group"
        return f"{key}: has no effect here, since {reader} alone reads it (got {given}); drop it"
    if group in GROUPS and name:
        return f"{key}: no such key here (got {given}); {nearest(name, GROUPS[group].fields())}"
    if given.startswith("{") and key in PICKS:
        return f"{key}: no option of it is chosen in this recipe (got {given}); add your own with a plus: '+{key}={given}'"
    known = [*PICKS, "seed", "store", "objective"]
    if name:
        return f"{key}: no such group (got {group!r}); {nearest(group, known)}"
    return f"{key}: no such key (got {given}); {nearest(key, known)}"


def _given(key: str, arguments: list[str]) -> str:
    return next((a.partition("=")[2] for a in arguments if a.lstrip("+~").partition("=")[0] == key), "?")
