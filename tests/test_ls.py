"""`diffopt ls`: the recipes and the options, a line each, for people and as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import registered

from diffopt.cli import ls
from diffopt.cli.ls import KINDS, SCHEMA, command
from diffopt.cli.main import main
from diffopt.cli.searchpath import GROUP, bundled
from diffopt.errors import ConfigError
from diffopt.groups import PICKS


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered()
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["ls", *arguments])
    return capsys.readouterr().out


def names(group: str) -> list[str]:
    folder = bundled("recipes") if group == GROUP else bundled("conf") / group
    return sorted(p.stem for p in folder.glob("*.yaml"))


@pytest.mark.parametrize("group", KINDS)
def test_every_option_has_a_line_that_says_what_it_is(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split(maxsplit=1) for line in said(capsys, group).splitlines()[1:]]
    assert [row[0] for row in rows] == names(group)
    for name, about in rows:
        assert len(about) > 15, name
        assert not about.startswith(("(its file", "The same ", "Give ")), name  # a line is read alone


def test_all_is_listed_without_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys).splitlines()
    assert [line.split()[0] for line in lines if line.endswith(")") and not line.startswith(" ")] == ["recipes", *PICKS]
    assert len([x for x in lines if x.startswith("  ")]) == sum(len(names(group)) for group in KINDS)


def test_json_has_names_lines_files_and_what_a_recipe_needs(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "--json"))
    assert found["schema"] == SCHEMA
    assert {group: [row["name"] for row in found[group]] for group in KINDS} == {group: names(group) for group in KINDS}
    (row,) = [r for r in found[GROUP] if r["name"] == "quickstart"]
    assert row["run"] == "diffopt +recipe=quickstart"
    assert row["needs"].startswith("nothing but the install")
    assert yaml.safe_load(Path(row["file"]).read_text())["eval"] == {"runtime": "onnxruntime"}
    assert all(r["about"] and Path(r["file"]).is_file() for group in KINDS for r in found[group])


@pytest.mark.parametrize("word", ["format", "formats", "format=", "+format"])
def test_a_group_is_named_as_it_comes_to_mind(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, word) == said(capsys, "format")


def test_a_group_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no such group \(got 'fromat'\); did you mean format\? there are cache, .*recipe"):
        command(["fromat"])


def test_recipes_and_options_of_the_users_own_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, text in {
        "recipes/mine.yaml": "# @package _global_\n# Mine, which is small. And more.\ndefaults: [quickstart]\n",
        "own/recipe/yours.yaml": "# @package _global_\ndefaults: [quickstart]\n",
        "own/calib/tiny.yaml": "# Four prompts.\ndefaults: [emoji]\nsize: 4\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    found = json.loads(said(capsys, "--json", "--config-dir", "own"))
    about = {row["name"]: row["about"] for group in (GROUP, "calib") for row in found[group]}
    assert (about["mine"], about["yours"], about["tiny"]) == ("Mine, which is small", "", "Four prompts")
    assert "(its file opens with no comment)" in said(capsys, "recipe", "--config-dir", "own")


def test_on_a_terminal_a_line_is_no_wider_than_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    lines = said(capsys).splitlines()
    assert max(map(len, lines)) == 60
    assert sum(line.endswith("...") for line in lines) > 10
    assert ls.NARROWEST < 60


def test_what_a_package_brings_is_listed_by_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    monkeypatch.syspath_prepend(Path(__file__).parent / "example_plugin")

    class Brings(SearchPathPlugin):
        def manipulate_search_path(self, search_path: Any) -> None:
            search_path.append("example", "pkg://diffopt_example.conf")

    plugins = Plugins.instance()
    kept = {kind: [*each] for kind, each in plugins.plugin_type_to_subclass_list.items()}
    plugins.register(Brings)
    try:
        rows = {row["name"]: row for row in json.loads(said(capsys, "cache", "--json"))["cache"]}
    finally:
        plugins.plugin_type_to_subclass_list = kept
    assert rows["doubling"]["file"] == "pkg://diffopt_example.conf/cache/doubling.yaml"
