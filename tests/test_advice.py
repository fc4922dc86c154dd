"""What a message says to do can be done: every field and value that one names is there, and is taken as it is written.

A message is `WHERE: what is wrong (got X); what to do`. Of all that are in the code, the last part is read: `set KEY=VALUE`,
`choose GROUP=OPTION`, `raise KEY` and the like.
"""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import composed
from omegaconf import OmegaConf

import diffopt
from diffopt.cli.main import main
from diffopt.cli.searchpath import bundled
from diffopt.errors import DiffoptError
from diffopt.groups import GROUPS
from diffopt.groups.ship import Ship, read
from diffopt.groups.validate import choose
from diffopt.jobs.job import spelled
from diffopt.schema import has

CODE = Path(diffopt.__file__).parent
OPTIONS = {group: sorted(p.stem for p in (bundled("conf") / group).glob("*.yaml")) for group in GROUPS}
TOP = ("seed", "ship", "store", "objective", "recipe", "key")
"""And `key` of `key=value`, which stands for any."""
VALUE = re.compile(r"(?<![\w.\-/{$'])\+?([a-z][a-z_]*(?:\.[a-z_\d]+|\.\{\w[^{}]*\})*)=([^\s,;()`']+)")
"""`KEY=VALUE`; a value in capitals, or that the code fills in, stands for one of the user's."""
NAMED = re.compile(r"(?<![\w.\-/{$'=*])((?:" + "|".join(GROUPS) + r")(?:\.[a-z_]+)+)(?![\w=(*/{])")
PYTHON = ("diffopt/kernels/load.py", "diffopt/cachify.py", "diffopt/__init__.py")
"""Whose messages are for callers of functions: `device='cpu'` is an argument."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every text of a module but its docstrings, what is filled in being in braces."""
    tree = ast.parse(path.read_text())
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    inner = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in ast.walk(n) if v is not n}
    for node in ast.walk(tree):
        if id(node) in docs or id(node) in inner:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else f"{{{ast.unparse(v.value)}}}" for v in node.values)  # type: ignore[attr-defined]
            yield node.lineno, "".join(parts)


VERBS = r"set|choose|add|give|raise|lower|drop|name|take|leave|or|by|write|turn|use"


@cache
def advice() -> list[tuple[str, str]]:
    """Where in the code, and what it says to do: of a whole message its end, of a part of one all of it."""
    found = []
    for path in sorted(CODE.rglob("*.py")):
        where = path.relative_to(CODE.parent).as_posix()
        if "assets" in path.parts or where in PYTHON:
            continue
        for line, text in texts(path):
            end = text.rpartition("; ")[2] if "; " in text else text if re.match(rf"({VERBS}) ", text) else ""
            if re.search(rf"(?:^|\W)({VERBS}) ", end):
                found.append((f"{where}:{line}", end))
    return found


def test_there_are_messages_to_judge() -> None:
    found = [m for _, text in advice() for m in VALUE.finditer(text)]
    assert len(advice()) > 150
    assert len(found) > 40


def test_every_field_that_is_named_is_one() -> None:
    wrong = []
    for where, text in advice():
        keys = [m[1] for m in VALUE.finditer(text)] + [m[1] for m in NAMED.finditer(text)]
        wrong += [f"{where}: {key} in {text!r}" for key in keys if not is_field(key)]
    assert wrong == []


def is_field(key: str) -> bool:
    """Of some option of its group; a name that the code fills in is any of those that are there."""
    group, _, within = key.partition(".")
    if group == "ship":
        return not within or has(Ship, within.split("."))
    if group in TOP or group.startswith("hydra"):
        return not within
    if group not in GROUPS:
        return False
    if not within or "{" in within:
        return True
    schemas = [
        GROUPS[group].shape(yaml.safe_load((bundled("conf") / group / f"{o}.yaml").read_text()) or {}) for o in OPTIONS[group]
    ]
    return any(has(schema, within.split(".")) for schema in schemas) or within in GROUPS[group].fields()


def literal() -> list[Any]:
    """Every `KEY=VALUE` with a value of its own, once."""
    pairs = {(m[1], m[2].rstrip(".")) for _, text in advice() for m in VALUE.finditer(text) if m[1] != "key"}
    return sorted((k, v) for k, v in pairs if "{" not in k + v and not v.isupper())


BASE = "+recipe=emoji_fp4_qad"
CHOSEN = {"cache": "cachify", "export": "onnx", "sense": "default"}
"""Beside the recipe's: so that every group has an option."""


WITHIN = {"train.data.small": ("~train.data", "+train.data={source: 'asset:prompts/pictures'}")}
"""What a field is read beside."""


@pytest.mark.parametrize(("key", "value"), literal(), ids=lambda x: str(x))
def test_every_value_that_is_named_is_taken(key: str, value: str) -> None:
    group, _, within = key.partition(".")
    if not within:
        assert group in TOP or value in (*OPTIONS[group], "null"), f"there are {OPTIONS.get(group)}"
        return
    if group == "ship":
        assert read({"want": "steps", "floor": {"psnr": 30}, "rounds": [8], within: yaml.safe_load(value)})
        return
    said = [refusal(group, option, f"{key}={value}") for option in OPTIONS[group]]
    assert None in said, said


def refusal(group: str, option: str, override: str) -> str | None:
    """What is said of the override, by Hydra or by the schema, where this option is chosen."""
    chosen = CHOSEN | {group: option}
    try:
        beside = WITHIN.get(override.partition("=")[0], ())
        config = composed(BASE, *(f"{g}={o}" for g, o in chosen.items()), *beside, override)
        choose(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    except DiffoptError as e:
        key = override.partition("=")[0]
        return next((line for line in str(e).splitlines() if line.startswith((f"{key}:", f"{key}."))), None)
    except Exception as e:  # Hydra's
        return str(e)
    return None


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, options in OPTIONS.items() for o in options], ids=lambda x: x)
def test_a_field_that_an_option_leaves_out_can_be_set(group: str, option: str) -> None:
    content = yaml.safe_load((bundled("conf") / group / f"{option}.yaml").read_text()) or {}
    plain = OmegaConf.to_container(composed(f"{group}={option}"), resolve=False)
    assert isinstance(plain, dict)
    own = plain[group]
    if not own:  # cache=none
        return
    schema = GROUPS[group].shape(own)
    left = [name for name in schema.model_fields if name not in own]
    changed = composed(f"{group}={option}", *(f"{group}.{name}=null" for name in left))
    assert {*changed[group]} == {*own, *left}
    assert content is not None


# what is advised is done

WARNED = {
    ("+recipe=sdxl_fp8", "model.weights=random"): "model: is computed on the CPU, since there is no NVIDIA GPU here (got "
    "reference with about 12.5 GiB); run it where there is one"
}
"""What of a plan that is refused is warned of beside; of the others nothing."""


@pytest.fixture
def plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], roomy: None
) -> Callable[..., list[str]]:
    """`plan(...)` are the lines that a plan is refused with, none where it is made; with options of one's own that say no
    more than they must."""
    monkeypatch.chdir(tmp_path)
    bare(tmp_path / "bare")
    (tmp_path / "long.txt").write_text("\n".join(["a very " * 40 + "red apple", *(f"red apple {i}" for i in range(200))]))

    def lines(*arguments: str) -> list[str]:
        try:
            main(["plan", "--config-dir", "bare", *map(spelled, arguments)])
        except SystemExit:
            beside = [f"warning: {WARNED[arguments]}"] if arguments in WARNED else []
            said = capsys.readouterr().err.splitlines()
            refused = said[: len(said) - len(beside)]
            assert said == refused + beside
            assert not [line for line in refused if line.startswith("warning: ")]
            return refused
        capsys.readouterr()
        return []

    return lines


def bare(directory: Path) -> None:
    """An option `bare` of each group: the fields that it must have, as those of another option."""
    like = {
        "model": "emoji_flux",
        "format": "int8_sq",
        "calib": "emoji",
        "train": "emoji_qad",
        "export": "onnx",
        "eval": "emoji",
    }
    for group, option in like.items():
        own: Any = OmegaConf.to_container(composed(f"{group}={option}"), resolve=False)
        schema = GROUPS[group].shape(own[group])
        must = {n: own[group][n] for n, f in schema.model_fields.items() if f.is_required() or n == "max_sequence_length"}
        (directory / group).mkdir(parents=True)
        (directory / group / "bare.yaml").write_text(yaml.safe_dump(must))


BARE = ("model=bare", "calib=bare", "eval=bare", "format=bare")
MISTAKES = [
    (*BARE, "calib.prompts=long.txt", "calib.size=4"),
    (*BARE, "eval.prompts=long.txt"),
    (*BARE, "train=bare", "train.data.prompts=long.txt"),
    ("+recipe=sdxl_fp8", "model.weights=random"),
    (*BARE, "format=nvfp4", "export=bare", "eval.runtime=onnxruntime"),
    ("+recipe=emoji_fp4", "export=onnx", "export.high_precision_dtype=float32"),
    (*BARE, "format=fp8", "format.quantize_mha=true", "export=bare", "export.high_precision_dtype=float32"),
    (*BARE, "format.quantize_mha=true"),
    (*BARE, "eval.latency=false", "eval.gates.latency=1.0x"),
    (*BARE, "eval.gates.lpips=0.1"),
    (*BARE, "eval.latency=false", "objective=seconds"),
    (*BARE, "objective=bytes"),
    (*BARE, "objective=lpips"),
    (*BARE, "eval.runtime=native"),
    (*BARE, "cache=deepcache"),
    (*BARE, "cache=tgate"),
    (*BARE, "cache=pyramid_attention", "cache.cross=2"),
    ("+recipe=emoji_sdxl_cache", "cache.reuse=residual"),
    ("+recipe=emoji_sdxl_cache", "cache=first_block"),
    (*BARE, "format=int4_awq", "format.block_size=48"),
    (*BARE, "export=native", "export.engine=true"),
    (*BARE, "export=bare", "export.max_batch_size=1", "export.batch_size=2"),
    (*BARE, "train=bare", "train.parallel=null", "train.processes=2"),
    (*BARE, "train=bare", "train.warmup=5000"),
    (*BARE, "calib.size=9999"),
    (*BARE, "sense=default", "sense.size=9999"),
    (*BARE, "eval.metrics=[psnr,dtssd]"),
    (*BARE, "eval.metrics=[psnr,ms-ssim]"),
    (*BARE, "eval.metrics=[]", "eval.compare=[ptq]"),
    (*BARE, "eval.metrics=[psnr,psnr]"),
    (*BARE, "calib.alpha=2"),
    (*BARE, "format=fp8", "calib.alpha=0.5"),
    (*BARE, "train=bare", "train.precision=float16"),
    (*BARE, "train=bare", "train.distillation.output=0", "train.distillation.hidden=0", "train.distillation.blocks=[]"),
    (*BARE, "eval.bench=[onnxruntime]", "eval.latency=false"),
    (*BARE, "eval.bench=[eager,native]"),
    (*BARE, "calib=null"),
    (*BARE, "eval=null", "cache=cachify"),
    ("format=bare", "calib=bare", "eval=bare"),
    (*BARE, "train=bare", "train.lora={rank: 4}"),
    ("+recipe=emoji_cache_search", "cache.search.prompts=999"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=" ".join)
def test_what_is_advised_mends_it(plan: Callable[..., list[str]], mistake: tuple[str, ...]) -> None:
    refused = plan(*mistake)
    assert refused
    for line in refused:
        ways = [done for way in re.split(r", or |(?<=\w) or (?=[a-z.]+=)", end(line)) if (done := followed(way, line, mistake))]
        assert ways or re.search(r"OPTION|VALUE|lower it|raise it|give |there are|name each once", line), line
        for asked in ways:
            again = plan(*asked)
            assert line not in again, asked
            keys = {a.partition("=")[0] for a in asked} - {a.partition("=")[0] for a in mistake}
            keys |= {key.partition(".")[0] for key in keys}  # nor may its group be of no use then
            assert not [x for x in again if x.partition(":")[0] in keys], asked


def end(line: str) -> str:
    return line.rpartition("; ")[2]


def followed(way: str, line: str, mistake: tuple[str, ...]) -> list[str] | None:
    """The command line again, with what is advised done to it; None where that is the user's to say."""
    where, got = line.partition(": ")[0], line.rpartition("; ")[0].rpartition("(got ")[2].rstrip(")").strip("'\"")
    given = {a.partition("=")[0].lstrip("+"): a.partition("=")[2] for a in mistake}
    if pairs := [(key, value) for key, value in VALUE.findall(way) if not value.isupper()]:
        return spelt(given | dict(pairs))
    if found := re.match(r"add ([\w-]+)(?: to ([a-z.]+))?", way):
        word = found[1] if found[1] != "it" else got if re.fullmatch(r"[\w-]+", got) else where.rpartition(".")[2]
        key = found[2] or where
        return spelt(given | {key: f"[{','.join([*listed(given, key), word])}]"})
    if way.startswith("leave it out") and got in listed(given, where):
        return spelt(given | {where: f"[{','.join(x for x in listed(given, where) if x != got)}]"})
    if way.startswith("drop it") and where in given:
        return spelt({k: v for k, v in given.items() if k != where})
    return None


def listed(given: dict[str, str], key: str) -> list[str]:
    """The values of a list, as given or as the option has it."""
    if key in given:
        return given[key].strip("[]").split(",")
    return list(OmegaConf.select(composed("eval=emoji"), key))


def spelt(given: dict[str, str]) -> list[str]:
    return [f"{'+' if key == 'recipe' else ''}{key}={value}" for key, value in given.items()]
