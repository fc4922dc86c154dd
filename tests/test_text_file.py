"""Texts as people have them: a mark in front, other encodings, odd ends of lines, and rows without a prompt."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffopt.cli.main import main
from diffopt.data import prompts, text_file


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, bytes], str]:
    def write(name: str, content: bytes) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


def refused(path: str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        prompts.read(path)
    return str(caught.value)


def test_a_packed_file_is_read_as_what_it_packs(file: Callable[[str, bytes], str]) -> None:
    for name, content in {
        "a.txt": b"a cat\na dog\n",
        "a.jsonl": b'{"prompt": "a cat"}\n"a dog"\n',
        "a.csv": b"prompt\na cat\na dog\n",
    }.items():
        packed = prompts.read(file(f"{name}.gz", gzip.compress(content)))
        assert packed.prompts == prompts.read(file(name, content)).prompts == ("a cat", "a dog")


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (lambda x: x[:-9], "is packed by gzip, and cut off or followed by more"),
        (lambda x: x[:10] + b"\xff" * 20, "is packed by gzip, and broken"),
        (lambda x: x + x, "is packed by gzip, and cut off or followed by more"),
    ],
)
def test_a_packed_file_that_is_broken_is_refused(file: Callable[[str, bytes], str], spoilt: Any, said: str) -> None:
    assert said in refused(file("a.txt.gz", spoilt(gzip.compress(b"a cat\na dog\n" * 50))))


def test_a_packed_file_is_not_unpacked_without_end(file: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "MOST", 1 << 20)
    assert "has more than 1048576 bytes when it is unpacked" in refused(file("a.txt.gz", gzip.compress(b"a cat\n" * 300_000)))


ODD = ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
"""What str.splitlines takes for an end of a line beside the real ones."""


@pytest.mark.parametrize("odd", ODD, ids=lambda c: f"U+{ord(c):04X}")
@pytest.mark.parametrize("kind", ["txt", "json", "csv", "tsv"])
def test_a_prompt_keeps_what_is_no_end_of_a_line(file: Callable[[str, bytes], str], kind: str, odd: str) -> None:
    texts = [f"a cat{odd}on a mat", "a dog"]
    content = {
        "txt": "\n".join(texts),
        "json": json.dumps(texts, ensure_ascii=False),
        "csv": "\n".join(["prompt,n", *(f"{t},1" for t in texts)]),
        "tsv": "\n".join(["prompt\tn", *(f"{t}\t1" for t in texts)]),
    }[kind]
    assert prompts.read(file(f"p.{kind}", content.encode())).prompts == tuple(texts)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_any_system(file: Callable[[str, bytes], str], end: str) -> None:
    assert prompts.read(file("p.txt", end.join(["a cat", "", "a dog", ""]).encode())).prompts == ("a cat", "a dog")


def test_a_quoted_cell_of_a_table_may_have_several_lines(file: Callable[[str, bytes], str]) -> None:
    assert prompts.read(file("p.csv", b'n,prompt\n1,"a cat,\non a mat"\n2,a dog\n')).prompts == ("a cat,\non a mat", "a dog")


@pytest.mark.parametrize("kind", ["txt", "json", "csv", "tsv"])
def test_another_encoding_is_named_with_where_it_shows(file: Callable[[str, bytes], str], kind: str) -> None:
    assert refused(file(f"p.{kind}", '["a cat",\n"café noir"]'.encode("cp1252"))) == (
        f"is not UTF-8 but cp1252 as it seems, by the byte 0xe9 in line 2, there 'é'; "
        f"save it as UTF-8, or `iconv -f cp1252 -t UTF-8 p.{kind}`"
    )


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32"), ("latin-1", "cp1252")],
)
def test_encodings_are_told_apart(file: Callable[[str, bytes], str], encoding: str, name: str) -> None:
    said = refused(file("my prompts.txt", "a café noir\na dog\n".encode(encoding)))
    assert said.endswith(f"save it as UTF-8, or `iconv -f {name} -t UTF-8 'my prompts.txt'`")


def test_a_byte_that_is_nothing_in_cp1252_is_latin_1(file: Callable[[str, bytes], str]) -> None:
    assert "latin-1" in refused(file("p.txt", b"caf\xe9 \x81"))


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)), b"PK\x03\x04\xff\0\0\xfe" * 40])
def test_what_is_no_text_is_said_to_be_none(file: Callable[[str, bytes], str], content: bytes) -> None:
    assert refused(file("p.txt", content)) == "is not a text file; give one in UTF-8"


@pytest.mark.parametrize(
    ("name", "content", "row"),
    [
        ("p.json", '["a cat", "", "a dog"]', "row 2 of 3"),
        ("p.json", '["a cat", "  "]', "row 2 of 2"),
        ("p.json", '[{"prompt": ""}, {"prompt": "a cat"}]', "row 1 of 2"),
        ("p.csv", "prompt,n\na cat,1\n,2\n", "row 2 of 2"),
        ("p.tsv", "prompt\tn\n \t1\na cat\t2\n", "row 1 of 2"),
    ],
)
def test_an_empty_prompt_of_a_list_is_said(file: Callable[[str, bytes], str], name: str, content: str, row: str) -> None:
    assert refused(file(name, content.encode())) == f"holds an empty prompt, {row}; write it, or leave the row out"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_recipes_and_options_may_begin_with_windows_mark(
    file: Callable[[str, bytes], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mark: bytes,
    end: bytes,
) -> None:
    monkeypatch.chdir(tmp_path)
    file("recipes/mine.yaml", mark + end.join([b"# @package _global_", b"defaults: [emoji_fp8]", b"calib: {size: 2}"]))
    file("conf/eval/mine.yaml", mark + end.join([b"defaults: [emoji]", b"size: 3"]))
    main(["plan", "--config-dir", "conf", "+recipe=mine", "eval=mine"])
    assert " to run; store " in capsys.readouterr().out


@pytest.mark.parametrize("where", ["recipes/mine.yaml", "conf/eval/mine.yaml"])
@pytest.mark.parametrize(("encoding", "name"), [("cp1252", "cp1252"), ("utf-16", "UTF-16")])
def test_a_config_in_another_encoding_is_named(
    file: Callable[[str, bytes], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
    encoding: str,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    file(where, "# @package _global_\n# café\n".encode(encoding))
    with pytest.raises(SystemExit):
        main(["plan", "--config-dir", "conf", "+recipe=mine" if "recipes" in where else "+recipe=emoji_fp8", "eval=mine"])
    err = capsys.readouterr().err
    assert err.startswith("mine.yaml: is ")
    assert err.endswith(f"save it as UTF-8, or `iconv -f {name} -t UTF-8 mine.yaml`\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("character", ["\x07", "\x00", "\ufffe"])
def test_a_config_with_a_character_that_yaml_has_not_is_refused_in_a_line(
    file: Callable[[str, bytes], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    character: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    file("recipes/mine.yaml", f"# @package _global_\ndefaults: [emoji_fp8]\n# {character}\n".encode())
    with pytest.raises(SystemExit):
        main(["plan", "+recipe=mine"])
    err = capsys.readouterr().err
    assert "mine.yaml: is " in err
    assert err.count("\n") == 1
    assert "does not know" not in err


def test_lines_of_a_text_are_its_real_ones() -> None:
    assert text_file.lines("a\u2028b\nc\x0bd") == ["a\u2028b", "c\x0bd"]
