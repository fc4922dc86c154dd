"""`diffopt copy`: a recipe of one's own, with every value written out."""

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from diffopt.cli.arguments import Parser
from diffopt.cli.options import Option, options, recipes
from diffopt.cli.own_options import DECIDES
from diffopt.cli.searchpath import GROUP, VARIABLE, bundled, recipe_dirs
from diffopt.errors import ConfigError
from diffopt.groups import GROUPS, PICKS
from diffopt.groups.validate import choose, nearest
from diffopt.jobs.job import spelled

NAME = re.compile(r"[A-Za-z_]\w*")
WIDE = 125


def parser() -> Parser:
    made = Parser("diffopt copy", description="Write a recipe of your own, with every value of another one.")
    made.add_argument("recipe", metavar="RECIPE", help="`diffopt ls recipes` lists them")
    made.add_argument("file", metavar="FILE", type=Path, help="recipes/NAME.yaml, to be run as +recipe=NAME; must not exist")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="values and options that are to be others")
    made.add_argument("--config-dir", "-cd", type=Path, help="a directory of your own groups and recipes")
    return made


def offered(words: list[str]) -> list[str]:
    """To complete: the first is a recipe."""
    if len(words) != 1:
        return []
    return sorted(p.stem for d in recipe_dirs() for p in d.glob("*.yaml"))


def command(arguments: list[str]) -> None:
    """Raises ConfigError or PlanError for what cannot be copied, and for what a run would refuse."""
    given = parser().parse_intermixed_args(arguments)
    name, file = given.recipe.removeprefix("+").removeprefix(f"{GROUP}="), given.file.expanduser()
    asked = [spelled(o) for o in given.overrides]
    with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
        there = {r.name: r for r in recipes()}
        if name not in there:
            raise ConfigError(f"diffopt copy: no such recipe (got {name!r}); {nearest(name, there)}")
        _check_file(file, list(there))
        text = written(there[name], asked, how(file, given.config_dir))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise ConfigError(f"diffopt copy: cannot be written ({reason}) (got {str(file)!r}); give another file") from None
    print(f"{file}: the recipe {name} with every value written out; change what you like, then")
    print(f"  {how(file, given.config_dir)}")


def _check_file(file: Path, there: list[str]) -> None:
    where = f"(got {str(file)!r})"
    if file.suffix != ".yaml":
        raise ConfigError(f"diffopt copy: a recipe's file ends in .yaml {where}; give recipes/{file.stem or 'mine'}.yaml")
    if not NAME.fullmatch(file.stem):
        raise ConfigError(
            f"diffopt copy: a recipe's name is of letters, digits and _ {where}; "
            f"give {re.sub(r'[^A-Za-z0-9_]+', '_', file.stem)}.yaml"
        )
    if file.exists():
        raise ConfigError(f"diffopt copy: the file is there already {where}; give another, or remove it")
    if file.stem in there:
        raise ConfigError(f"diffopt copy: there is a recipe {file.stem} already {where}; give another name")


def how(file: Path, config_dir: Path | None = None) -> str:
    """The command that runs a recipe's file from here."""
    run = f"diffopt +{GROUP}={file.stem}"
    folder = file.parent.resolve()
    if folder in recipe_dirs(config_dir):
        return run if folder in recipe_dirs() else f"{run} --config-dir {config_dir}"
    if folder == Path("recipes").resolve():
        return run
    return f"{VARIABLE}={file.parent} {run}"


def written(recipe: Option, overrides: list[str], run: str) -> str:
    """The text of the copy, which the command `run` runs. Within an initialized Hydra."""
    config = compose("config", [f"+{GROUP}={recipe.name}", *overrides], return_hydra_config=True)
    chosen: Any = OmegaConf.to_container(config.hydra.runtime.choices, resolve=False)
    visible = OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"])
    if overrides:
        choose(OmegaConf.to_container(visible, resolve=True))  # type: ignore[arg-type]
    values: Any = OmegaConf.to_container(visible, resolve=False)
    picks, hydra = _hydra_parts(recipe)
    spaces = [OmegaConf.select(hydra, "sweeper.params") or {}, *((values.get("ship") or {}).get("space") or [])]
    swept = {str(k) for space in spaces for k in space if k in PICKS}
    defaults = {f"override /{g}": chosen[g] for g in PICKS if g in swept and chosen.get(g)} | picks
    parts = [{"defaults": [{k: v} for k, v in defaults.items()]}] if defaults else []
    parts += [{k: values[k]} for k in ("seed", "objective", "ship") if values.get(k) is not None]
    lines = [_header(recipe, overrides, run), *(_yaml(p) for p in parts)]
    for group in PICKS:
        if not values.get(group):
            continue
        if group in swept:
            if less := _beyond(values[group], group, chosen[group]):
                lines.append(f"\n# Beyond the option of each job.\n{_yaml({group: less})}")
        else:
            lines.append(f"\n{_about(group, chosen.get(group))}{_yaml({group: _full(group, values[group])})}")
    if idle := [g for g in PICKS if not values.get(g)]:
        lines.append(f"\n# Nothing is chosen of: {', '.join(idle)}.\n")
    if hydra:
        lines.append(f"\n{_yaml({'hydra': OmegaConf.to_container(hydra, resolve=False)})}")
    return "".join(lines)


def _header(recipe: Option, overrides: list[str], run: str) -> str:
    changed = f" with {' '.join(overrides)}" if overrides else ""
    said = [
        f"A copy of {recipe.name}{changed}, every value written out. {recipe.about}{'.' if recipe.about else ''}",
        *(f"{part}: {text}" for part in ("Needs", "Expect") if (text := recipe.part(part))),
        f"Run:   {run}",
    ]
    lines = [line for text in said for line in textwrap.wrap(text, WIDE - 2, break_long_words=False, break_on_hyphens=False)]
    return "".join(f"{line}\n" for line in ["# @package _global_", *(f"# {line}" for line in lines)])


def _about(group: str, option: str | None) -> str:
    """A comment above a group: the option that its values are of."""
    found = next((o for o in options(group) if o.name == option), None)
    return f"# {group}={found.name}: {found.about}.\n" if found else ""


def _full(group: str, values: dict[str, Any]) -> dict[str, Any]:
    """With those fields that have a default, are read whatever is chosen, and that the option's file leaves out."""
    schema = GROUPS[group].shape(values)
    found = dict(values)
    for field in schema.model_fields:
        default = schema.model_fields[field].get_default(call_default_factory=True)
        always = not GROUPS[group].reader(field) or field in DECIDES.get(group, ())
        if field not in values and always and isinstance(default, bool | int | float | str | list):
            found[field] = default
    return found


def _beyond(values: dict[str, Any], group: str, option: str) -> dict[str, Any]:
    """What a recipe says of a group, its option apart."""
    alone: Any = OmegaConf.to_container(compose("config", [f"{group}={option}"])[group], resolve=False)
    return {k: v for k, v in values.items() if k not in alone or alone[k] != v}


def _hydra_parts(recipe: Option) -> tuple[dict[str, str], DictConfig]:
    """What a recipe, and what it extends, choose of Hydra's own groups, and what they say of its settings."""
    there = {r.name: r for r in recipes()}
    picks: dict[str, str] = {}
    found: Any = OmegaConf.create({})
    content = recipe.content
    for entry in content.get("defaults") or []:
        if isinstance(entry, str) and entry.rpartition("/")[2] in there:
            inner, below = _hydra_parts(there[entry.rpartition("/")[2]])
            picks |= inner
            found = OmegaConf.merge(found, below)
        elif isinstance(entry, dict):
            picks |= {str(k): v for k, v in entry.items() if "/hydra/" in str(k)}
    return picks, OmegaConf.merge(found, content.get("hydra") or {})  # type: ignore[return-value]


def _yaml(content: dict[str, Any]) -> str:
    text: str = yaml.dump(content, Dumper=_Written, sort_keys=False, allow_unicode=True, width=WIDE)
    return text


class _Written(yaml.SafeDumper):  # type: ignore[misc]
    """Lists of plain values on one line, and indented below their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        plain = all(not isinstance(x, dict | list) for x in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)
