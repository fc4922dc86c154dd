"""Hydra's and OmegaConf's errors as lines of our own: what is wrong, what was given, what there is.

Their exceptions have fields for most of that; what stands in the text alone is read from it, and said to be.
"""

import re
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ConfigTypeError, OmegaConfBaseException
from yaml import MarkedYAMLError
from yaml.reader import ReaderError

from diffopt.cli.searchpath import recipe_dirs
from diffopt.errors import DiffoptError
from diffopt.groups import GROUPS, PICKS
from diffopt.groups.validate import dotted, nearest, said, unresolved, within
from diffopt.schema import has

MODES = ("--run", "-r", "--multirun", "-m", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
"""Hydra's flags of what to do, of which it takes one."""


def line(error: Exception, arguments: list[str]) -> str:
    """The text for the user; an error of ours is already one."""
    cause = error.__cause__
    for ours in (cause, error):  # a callback's is the cause of what Hydra says of its call to a target
        if isinstance(ours, DiffoptError):
            return str(ours)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing(error, error.missing_cfg_file)
    if isinstance(error, OverrideParseException):
        why = f", {said(str(cause))}" if cause else ""
        return (
            f"override: cannot be read{why} (got {error.override}); write key=value, and quote odd characters: 'key=\"a, b\"'"
        )
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name}: is no YAML, {error.problem} (got it in line {mark.line + 1}); mend it"
    if isinstance(error, ReaderError):
        what = f"has the character {f'U+{error.character:04X}'!r}" if isinstance(error.character, int) else said(error.reason)
        return f"{error.name}: is no YAML, {what} (got it at position {error.position}); take it out"
    if isinstance(error, OmegaConfBaseException):
        return unresolved(error)
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return _not_merged(cause, cause.full_key, arguments)
    return _read(str(error), cause, arguments)


def _missing(error: MissingConfigException, what: str) -> str:
    """For an option that a group has not, or a config that another extends."""
    group, _, option = what.rpartition("/")
    if error.options is not None:
        if not error.options:
            return f"{group}: has no options yet (got {option!r}); drop it"
        return f"{group}: no such option (got {option!r}); {nearest(option, error.options, _listed(group))}"
    # Which config extends it has no field; nothing extends the one that --config-name names.
    if found := re.match(r"In '([^']*)': ", str(error)):
        known = [p.stem for d in recipe_dirs() for p in d.glob("*.yaml")]
        there = nearest(option, known, _listed(group)) if group == "recipe" else "mend its defaults"
        return f"{found[1]}: extends what is not there (got {what!r}); {there}"
    return f"{what}: no such config (got {what!r}); `diffopt ls` lists what there is"


def _listed(group: str) -> str:
    return f"`diffopt ls {group}` lists them" + (", quickstart is the one to begin with" if group == "recipe" else "")


def _not_merged(cause: OmegaConfBaseException, full_key: str, arguments: list[str]) -> str:
    """For an override of a key that is not there, or by what does not fit it."""
    key, given = _override(dotted(full_key), arguments)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        fields = [a for a in arguments if a.lstrip("+~").startswith(f"{key}.")]
        if key in PICKS and fields:  # which is left out, so that these have none to be of
            key, given = _override(fields[0].lstrip("+~").partition("=")[0], arguments)
        return _no_key(key, given)
    if isinstance(cause, ConfigTypeError) and cause.object_type is list:
        return f"{key}: is a list in the recipe (got {given}); write it as one: [{given}]"
    return f"{key}: {said(cause.msg or str(cause))} (got {given}); mend it"


def _read(text: str, cause: BaseException | None, arguments: list[str]) -> str:
    """For a HydraException with nothing but its text."""
    # Of the defaults list: the override has no field, and there is no cause.
    if found := re.search(r"Could not override '([^']+)'", text):
        return _no_key(found[1], _override(found[1], arguments)[1])
    # The group has no field.
    if found := re.search(r"Multiple values for (\w+)", text):
        return f"{found[1]}: is chosen twice (got it as an override); choose once"
    if found := re.search(r"config groups is not supported: '[+~]*([^=']+)=?(.*)'", text):
        return f"{found[1]}: is chosen by the name of an option (got {found[2]} with ++); {found[1]}=NAME, or +{found[1]}=NAME"
    # Nor has the override, in these three.
    if found := re.search(r"An item is already at '([^']+)'", text):
        given = _override(found[1], arguments)[1]
        return f"{found[1]}: is in the recipe already (got it with a plus); without: {found[1]}={given}"
    if found := re.search(r"Could not delete from config. '([^']+)' does not exist", text):
        return f"{found[1]}: is not in the recipe, so it cannot be left out (got ~{found[1]}); drop it"
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^=]+)=(.*)'", text):
        return f"{found[1]}: reads as several values (got {found[2]}); quote one, list them as [a,b], or sweep with --multirun"
    lines = [x for x in text.strip().splitlines() if x.strip() and "HYDRA_FULL_ERROR" not in x]
    if cause and str(cause) not in text:
        lines.append(str(cause).splitlines()[0])
    return "\n".join(lines)


def of_hydra(error: Exception, arguments: list[str]) -> str | None:
    """For what Hydra raises that is no exception of its own; None for an error of something else."""
    if "Only one of --run" in str(error):  # its text alone tells
        given = [a for a in arguments if a in MODES]
        return f"flags: of --run, --multirun, --cfg and --info one goes at a time (got {' '.join(given)}); drop the others"
    if isinstance(error, AttributeError) and "'_target_'" in str(error):  # what Hydra makes its parts of has none
        for override in arguments:
            key, sign, value = override.lstrip("+~").partition("=")
            group = key.replace(".", "/")
            if sign and group in ("hydra/launcher", "hydra/sweeper"):
                return f"{key}: is chosen by the name of an option (got {value}); {group}=NAME, basic is the default"
    plain = AssertionError | AttributeError | LookupError | RecursionError | TypeError | ValueError
    return of_defaults(error, arguments) if isinstance(error, plain) else None


def of_defaults(error: Exception, arguments: list[str]) -> str | None:
    """For what Hydra's list of defaults raises without an exception of its own; None for an error of something else."""
    within = [
        Path(frame.filename).name in ("defaults_list.py", "default_element.py")
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    if isinstance(error, RecursionError) and any(within):
        return "recipe: extends itself, perhaps through another (got endless defaults); mend its defaults"
    if not within or not within[-1]:
        return None
    for argument in arguments:
        key, sign, given = argument.lstrip("+~").partition("=")
        if sign and not key:
            return f"override: names no field (got {argument!r}); write key=value"
        if sign and (key in (*PICKS, "recipe") or "/" in key) and not _names(argument):
            return f"{key}: is chosen by the name of an option (got {given}); `diffopt ls` lists them"
    return f"recipe: its defaults cannot be read (got {type(error).__name__}: {error}); mend them"


def _names(override: str) -> bool:
    """Whether the value is a name, or a list of names, or gives the keys of a group."""
    try:
        value = OverridesParser.create().parse_override(override).value()
    except HydraException:
        return False
    return isinstance(value, str | dict) or (isinstance(value, Sequence) and all(isinstance(x, str) for x in value))


def of_launcher(error: Exception) -> str | None:
    """For what joblib, submitit or Ray raise when a process ended before its job did, or submitit of an error in one; None for
    other errors."""
    library = type(error).__module__.partition(".")[0]
    if library not in ("joblib", "submitit", "ray"):
        return None
    said = next((x.strip() for x in str(error).splitlines() if x.strip()), "nothing")
    if said.startswith("sbatch:"):
        return (
            f"sweep: Slurm does not take the jobs (got {said[:200]}); set hydra.launcher.gpus_per_node, cpus_per_task, mem_gb, "
            "partition or account to what the cluster has: `diffopt ... --cfg hydra --package hydra.launcher` shows them"
        )
    if trace := re.search(r"^-{10,}\n(.*?)\n-{10,}$", str(error), re.DOTALL | re.MULTILINE):
        cause = trace[1].strip().splitlines()[-1].strip()
        return (
            f"sweep: a process of {library} failed outside its job (got {cause[:200]}); its log is in the sweep's "
            "directory under .submitit; the same command goes on from what is in the store"
        )
    return (
        f"sweep: {library} lost a process before its job ended, perhaps to a lack of memory (got {type(error).__name__}: "
        f"{said[:200]}); fewer at once need less (DIFFOPT_JOBS=1); the same command goes on from what is in the store"
    )


def unknown_command(word: str, commands: list[str]) -> str:
    """For `diffopt plna`, and for a recipe named without `+recipe=`."""
    return f"diffopt: no such command (got {word!r}); {nearest(word, commands)}  To run a recipe: diffopt +recipe={word}"


def _no_key(key: str, given: str) -> str:
    if key == "recipe":
        return f"recipe: is added to the config, so with a plus (got recipe={given}); +recipe={given}"
    group, _, name = key.partition(".")
    path = name.split(".")
    if group in GROUPS and (name in GROUPS[group].fields() or has(GROUPS[group], path)):
        if path[0] in GROUPS[group].model_fields:  # of a chosen option it would have been taken
            return f"{key}: the group is not chosen (got {given}); choose {group}=OPTION, or drop it"
        reader = GROUPS[group].reader(name) or "another option of the group"
        return f"{key}: has no effect here, since {reader} alone reads it (got {given}); drop it"
    if group in GROUPS and name:
        there = next(i for i in range(len(path)) if not has(GROUPS[group], path[: i + 1]))
        fields = within(GROUPS[group], path[:there]) if there else GROUPS[group].fields()
        return f"{key}: no such key here (got {given}); {nearest(path[there], fields)}"
    if given.startswith("{") and key in PICKS:
        return f"{key}: no option of it is chosen in this recipe (got {given}); add your own with a plus: '+{key}={given}'"
    known = [*PICKS, "seed", "store", "objective"]
    if name:
        return f"{key}: no such group (got {group!r}); {nearest(group, known)}"
    return f"{key}: no such key (got {given}); {nearest(key, known)}"


def _override(key: str, arguments: list[str]) -> tuple[str, str]:
    """Key and value of the argument that a key is of: its own, that of one within it, or of a group that has it in braces."""
    given = [(k, v) for k, _, v in (a.lstrip("+~").partition("=") for a in arguments)]
    exact = [x for x in given if x[0] == key]
    below = [x for x in given if x[0].startswith(f"{key}.")]
    above = [(key, v) for k, v in given if key.startswith(f"{k}.") and v.startswith("{")]
    return next(iter(exact + below + above), (key, "?"))
