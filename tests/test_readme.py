"""The manual is true: the tables, commands, links and paths of every README."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fields
import matrix_table
import pytest
from conftest import composed, registered
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from manual import FOLDERS, PAGES, ROOT, Page, named, page, words
from omegaconf import OmegaConf
from test_found_matrix import FORMATS as FOUND_FORMATS
from test_matrix import MODELS
from tiny_unknown import UNKNOWN

from diffopt import formats
from diffopt.cli.arguments import Parser
from diffopt.cli.commands import COMMANDS
from diffopt.cli.searchpath import PLUGINS, bundled
from diffopt.formats.auto import METHOD as AUTO
from diffopt.groups import GROUPS, PICKS
from diffopt.groups.alternatives import ALTERNATIVES
from diffopt.jobs import runtime_checks
from diffopt.metrics import METRICS
from diffopt.stage import stages

README = page("README.md")
CONF = page("conf/README.md")
COMMANDS_TOLD = {command: p.name for p in reversed(PAGES) for command in p.commands}
"""Every command once, and the first page that has it."""
EACH = pytest.mark.parametrize("readme", PAGES, ids=lambda p: p.name)
PLACEHOLDER = re.compile(r"\b(PATH|NAME|ID|DIRECTORY|PHOTOGRAPHS|OTHERS)\b|\bmy_pictures\b")
"""What stands for something of the user's."""
PATHS = re.compile(rf"(?<![\w./:-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w")
FILE = re.compile(r"\.(onnx|plan|json|html)$")


def options(group: str) -> set[str]:
    return {p.stem for p in (bundled("conf") / group).glob("*.yaml")}


def plugged(group: str) -> set[str]:
    """Options that packages of the tests bring."""
    return {p.stem for p in (ROOT / "tests").rglob(f"conf/{group}/*.yaml")}


def about(title: str) -> Page:
    """The page with this title."""
    return next(p for p in PAGES if p.text.startswith(f"# {title}\n"))


# the pages themselves


def test_the_readme_is_short() -> None:
    assert len(README.text.splitlines()) <= 200


def test_the_readme_leads_to_every_page() -> None:
    told = [Page(README.to(file)).name for link, _ in README.table("page") for file in re.findall(r"\]\((.+)\)", link)]
    assert sorted(told) == sorted(p.name for p in PAGES if p is not README)


def test_a_page_beside_options_or_recipes_is_none_itself() -> None:
    registered()
    with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
        served = GlobalHydra.instance().config_loader().get_group_options
        assert [group for group in PICKS if not options(group) <= {*served(group)}] == []
        assert {p.stem for p in bundled("recipes").glob("*.yaml")} <= {*served("recipe")}
        assert [group for group in (*PICKS, "recipe") if "README" in served(group)] == []


@EACH
def test_every_link_leads_somewhere(readme: Page) -> None:
    for file, anchor in readme.links:
        target = readme.to(file)
        assert target.exists(), f"{readme.name}: {file}"
        assert not anchor or anchor in Page(target).anchors, f"{readme.name}: {file}#{anchor}"


@EACH
def test_every_path_that_a_page_names_is_there(readme: Page) -> None:
    for path in (path for line in [*readme.spans, *readme.lines] for path in PATHS.findall(line)):
        assert (ROOT / path).exists(), f"{readme.name}: {path}"


@EACH
def test_every_extra_that_a_page_installs_is_one(readme: Page) -> None:
    there = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"diffopt\[([\w-]+)\]", readme.text)) <= set(there)


@EACH
def test_every_field_and_option_that_a_page_names_is_there(readme: Page) -> None:
    group = "|".join(PICKS)
    known = fields.paths() | {f"{s.name}.baseline" for s in stages()}
    for word in (word for line in [*readme.spans, *readme.lines] for word in line.split()):
        if FILE.search(word):
            continue
        if field := re.match(rf"['+~]*(({group})\.[a-z_][\w.]*)(?=$|[=:}}])", word):
            assert field[1] in known, f"{readme.name}: {word}"
        if pick := re.fullmatch(rf"\+?({group})=([\w,]+)", word):
            assert set(pick[2].split(",")) <= options(pick[1]) | plugged(pick[1]) | {"null"}, f"{readme.name}: {word}"


def test_the_table_of_extras_names_them_all() -> None:
    there = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(README.column("extra")) == sorted(there)


# commands


@EACH
def test_every_make_target_that_a_page_names_is_there(readme: Page) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {found[1] for line in readme.lines if (found := re.match(r"make (\w+)", line))} <= targets


def test_the_table_of_make_targets_has_them_all() -> None:
    told = [target.removeprefix("make ") for target in page("tests/README.md").column("target")]
    assert told == re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)


class Parsed(Exception):
    """A sub-command has read its arguments."""


def commands(test: Callable[[str], bool]) -> pytest.MarkDecorator:
    found = [pytest.param(c, id=f"{name}: {c}") for c, name in COMMANDS_TOLD.items() if test(c)]
    return pytest.mark.parametrize("command", found)


def composes(command: str) -> bool:
    """Whether Hydra composes it: one with overrides, and no sub-command but `plan`."""
    name, *_ = words(command)
    return "=" in command and (name == "plan" or name not in COMMANDS)


@commands(lambda command: not composes(command))
def test_every_sub_command_and_flag_is_one(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *rest = words(command)
    if name.startswith("-"):
        assert name in get_args_parser()._option_string_actions
        return
    assert name in COMMANDS
    if not rest or (name == "store" and len(rest) == 1):  # it is only spoken of
        assert not rest or rest[0] in COMMANDS[name].actions
        return
    for way in ("parse_args", "parse_intermixed_args"):
        parse = getattr(Parser, way)

        def stop(self: Parser, arguments: list[str], parse: Any = parse) -> Any:
            parse(self, arguments)
            raise Parsed

        monkeypatch.setattr(Parser, way, stop)
    with pytest.raises(Parsed):
        COMMANDS[name](rest)


def jobs(overrides: list[str]) -> list[list[str]]:
    """As many jobs of a sweep as have each of its values once; one of anything else."""
    registered()
    parsed = [(o, OverridesParser.create().parse_override(o)) for o in overrides]
    each = [
        [f"{p.get_key_element()}={v}" for v in p.sweep_string_iterator()] if p.is_sweep_override() else [o] for o, p in parsed
    ]
    return [[values[i % len(values)] for values in each] for i in range(max(map(len, each)))]


@commands(composes)
def test_every_recipe_with_its_overrides_can_be_planned(
    command: str, plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_plans = any("tensorrt" in w for w in words(command) if w.startswith("eval."))
    rtx, h200 = ({"name": "NVIDIA RTX 5090", "capability": "12.0"}, {"name": "NVIDIA H200", "capability": "9.0"})
    monkeypatch.setattr(runtime_checks, "gpus", lambda: (rtx if runs_plans else h200,))  # as some commands need
    flags = [w for w in words(command)[command.startswith("diffopt plan") :] if "=" not in w]
    assert {*flags} <= {"--multirun"}
    for job in jobs([w for w in words(command) if "=" in w]):
        if PLACEHOLDER.search(command):
            assert composed(*job)
        else:
            races = composed(*job).ship is not None  # a setting of one is planned as one of several jobs
            assert plan(*job, sweep=bool(flags) or races).steps


def test_the_recipes_that_the_pages_give_as_examples_can_be_planned(tmp_path: Path, plan: Callable[..., Any]) -> None:
    examples = [block for p in PAGES for block in p.blocks("yaml") if block.startswith("# @package _global_")]
    assert examples
    (tmp_path / "recipes").mkdir()
    for text in examples:
        found = re.match(r".*\n# (recipes/(my_\w+)\.yaml): run by diffopt \+recipe=\2\n", text)
        assert found
        (tmp_path / found[1]).write_text(text)
        assert plan(f"+recipe={found[2]}").steps


# tables


def test_the_table_of_groups_names_every_option() -> None:
    told = {named(group)[0].rstrip("="): set(named(cell)) for group, cell in CONF.table("group")}
    assert told == {group: options(group) for group in PICKS}


@pytest.mark.parametrize("group", [g for g in GROUPS if g != "cache"])
def test_the_table_of_a_groups_fields_says_what_each_takes(group: str) -> None:
    told = {named(name)[0]: takes for name, takes, _ in CONF.table("field", f"`{group}`")}
    check(told, fields.of_group(group))


def test_the_table_of_the_caches_fields_says_what_each_takes() -> None:
    told = {((named(m) or [m])[0], named(f)[0]): takes for m, f, takes, _ in CONF.table("method", "`cache`")}
    check(told, fields.of_caches())
    check({named(f)[0]: takes for f, takes, _ in CONF.table("field", "`cache`")}, fields.of_search())


def check(told: dict[Any, str], there: dict[Any, str]) -> None:
    assert list(told) == list(there) or set(told) == set(there), {*told} ^ {*there}
    wrong = {name: f"is {there[name]!r}, told {takes!r}" for name, takes in told.items() if not fields.same(takes, there[name])}
    assert not wrong


def test_the_glossary_is_short() -> None:
    assert len(CONF.table("term")) <= 20


def first_sentence(recipe: Path) -> str:
    comments = [line[1:].strip() for line in recipe.read_text().splitlines() if line.startswith("# ")]
    return " ".join(comments[1:]).split(". ")[0].split(" Needs:")[0].rstrip(".")


def test_the_table_of_recipes_has_every_recipe_with_its_own_first_sentence() -> None:
    told = {named(name)[0]: text.rstrip(".") for name, text in page("recipes/README.md").table("recipe")}
    assert told == {p.stem: first_sentence(p) for p in bundled("recipes").glob("*.yaml")}


def test_every_recipe_opens_with_what_it_makes_needs_and_how_to_run_it() -> None:
    for path in bundled("recipes").glob("*.yaml"):
        text = path.read_text()
        assert text.startswith("# @package _global_\n# ")
        for part in ("# Needs:", f"# Run:   diffopt +recipe={path.stem}", "# Expect:"):
            assert part in text, f"{path.name} lacks {part}"


def test_the_table_of_caches_has_every_option() -> None:
    assert set(page("diffopt/caches/README.md").column("`cache=`")) == options("cache")


def test_the_table_of_trainings_has_every_option() -> None:
    assert set(page("diffopt/training/README.md").column("`train=`")) == options("train")


def test_the_table_of_formats_has_every_option_with_its_bits() -> None:
    told = {named(row[0])[0]: row[3] for row in about("Quantization").table("`format=`")}
    there = {name: formats.method(name) for name in options("format")}
    assert told == {name: "`format.budget`" if m is AUTO else f"{m.weight_bits:g}" for name, m in there.items()}


def test_the_table_of_families_has_every_model() -> None:
    told = {named(family)[0]: set(named(models)) for family, models, _ in page("diffopt/models/README.md").table("family")}
    there: dict[str, set[str]] = {}
    for path in (bundled("conf") / "model").glob("*.yaml"):
        there.setdefault(str(OmegaConf.load(path).family), set()).add(path.stem)
    assert told == there


def test_the_table_of_metrics_has_every_metric() -> None:
    told = page("diffopt/metrics/README.md").table("metric")
    assert {name for row in told for name in named(row[0])} == set(METRICS)
    for row in told:
        for metric in (METRICS[name] for name in named(row[0])):
            assert (metric.better in row[2], bool(metric.needs)) == (True, "--" in row[3] or row[3] == "the same"), metric.name


def test_the_table_of_alternatives_has_them_all() -> None:
    assert page("diffopt/metrics/README.md").column("name", "Side by side") == list(ALTERNATIVES)


def test_the_table_of_stages_has_every_stage_in_order_with_the_kind_that_it_makes() -> None:
    told = [(named(stage)[0], named(kind)[0]) for stage, kind, _ in about("The store").table("stage")]
    assert told == [(s.name, s.makes.kind) for s in stages()]


def test_the_table_of_launchers_has_every_launcher() -> None:
    there = {p.stem for p in (PLUGINS / "launcher").glob("*.yaml")}
    assert set(about("Sweeps and searches").column("`hydra/launcher=`")) == there | {"basic"}


def test_the_support_matrix_is_that_of_the_last_results() -> None:
    found = json.loads(matrix_table.FOUND.read_text())
    assert matrix_table.table(found) in page("diffopt/models/README.md").text
    expected = {n: {*matrix_table.FORMATS} for n in MODELS} | {f"auto: {n}": {*FOUND_FORMATS} for n in UNKNOWN}
    assert {name: set(cells) for name, cells in found["cells"].items()} == expected


# numbers


@pytest.mark.parametrize("row", README.table("what", "What was measured"), ids=lambda row: row[0])
def test_what_the_readme_says_was_measured_stands_on_the_page_that_it_links_to(row: list[str]) -> None:
    what, result, command = row
    link = re.search(r"\]\(([^)#]+)#", what)
    assert link
    text = " ".join(Page(README.to(link[1])).text.split())
    assert f"`{named(command)[0]}`" in text or f"{named(command)[0]} " in text
    for number in re.findall(r"\d[\d,]*\.?\d*", result):
        assert re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d.]*\d)", text), f"{number} is not on {link[1]}"
