"""Whatever stands in a file that a command reads: it is taken, or refused in a line that says what is wrong."""

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import composed
from fuzzing import fuzzed, json_values
from hypothesis import given
from hypothesis import strategies as st
from test_files import WRITTEN
from tiny import ONE, Bench, saved

from diffopt.cli import picture_list
from diffopt.data import prompts
from diffopt.errors import ConfigError, PlanError, SourceError, StoreError
from diffopt.files.json_file import JsonFile
from diffopt.jobs import job
from diffopt.models.pipelines import part_class
from diffopt.pipeline.fields import mistyped
from diffopt.pipeline.open import open_pipeline
from diffopt.report import run_page
from diffopt.report.run_directory import Run
from diffopt.store import assets, schemas
from diffopt.store.entry import RECORD, Entry
from diffopt.store.fingerprint import fingerprint
from diffopt.store.store import Store

RUN = next(content for kind, content in WRITTEN if kind.NAME == "run.json")
IDENTITY: dict[str, Any] = {"stage": "quantize", "config": {"format": {"name": "fp8"}}, "inputs": {"pipeline": "ab"}}
PROVENANCE = {"seconds": 1.5, "peak_bytes": {"ram": 1}, "estimated": {"seconds": 1.0}, "machine": {"cpu": "x", "gpus": []}}
MEANT = (json.dumps({"run": "/x", "artifacts": [["pipeline", "ab"]]}), json.dumps({"/x:1:2": "0" * 64}))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


@st.composite
def changed(draw: st.DrawFn, content: Any) -> Any:
    """The content with one of its values another, or gone."""
    path = draw(st.sampled_from([*places(content)]))
    if not path:
        return draw(json_values)
    found = copy.deepcopy(content)
    where = found
    for key in path[:-1]:
        where = where[key]
    if draw(st.booleans()):
        where[path[-1]] = draw(json_values)
    else:
        del where[path[-1]]
    return found


written = st.sampled_from(WRITTEN).flatmap(lambda pair: st.tuples(st.just(pair[0]), changed(pair[1])))


@fuzzed(400)
@given(written)
def test_a_file_of_an_artifact_is_read_or_refused_by_its_name(given: tuple[type[JsonFile], Any]) -> None:
    kind, content = given
    refused = None
    try:
        kind.of(content)
    except StoreError as e:
        refused = str(e)
    assert refused is None or (refused.startswith(f"{kind.NAME}: ") and "\n" not in refused)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seconds": "long"}, "run.json: steps.0.seconds: is no number (got 'long'); make what it belongs to again"),
        ({"state": "odd"}, "run.json: steps.0.state: is none of made, cached, spare, helped (got 'odd')"),
        ({"inputs": "load"}, "run.json: steps.0.inputs: is no list (got 'load')"),
        ({"inputs": [1]}, "run.json: steps.0.inputs.0: is no text (got 1)"),
    ],
)
def test_what_is_wrong_is_named_by_the_keys_that_lead_to_it(change: dict[str, Any], said: str) -> None:
    kind = next(kind for kind, _ in WRITTEN if kind.NAME == "run.json")
    with pytest.raises(StoreError) as caught:
        kind.of(RUN | {"steps": [RUN["steps"][0] | change]})
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b'"x"', b'{"name": 1}'])
def test_a_run_whose_file_is_none_is_refused_in_a_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r"^report: run\.json (cannot be read|is not one of ours)") as caught:
        run_page.write(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_with_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")

    @fuzzed(150)
    @given(changed(RUN).map(json.dumps).map(str.encode) | st.binary(max_size=60))
    def read(text: bytes) -> None:
        (folder / "run.json").write_bytes(text)
        with suppress(ConfigError):
            assert isinstance(Run(folder).content.name, str)

    read()


def test_a_record_is_read_or_refused_and_verified_alike(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    key = fingerprint(IDENTITY)
    with store.publish("checkpoint", key, IDENTITY, PROVENANCE) as out:
        (out / "x.json").write_text("{}")
    path = store.root / "checkpoint" / key / RECORD
    record = json.loads(path.read_text())
    path.parent.chmod(0o755)
    path.chmod(0o644)

    @fuzzed(150)
    @given(changed(record).map(json.dumps).map(str.encode) | st.binary(max_size=60))
    def read(text: bytes) -> None:
        path.write_bytes(text)
        entry = Entry("checkpoint", key, path.parent)
        refused = None
        try:
            entry.check_content()
        except StoreError as e:
            refused = str(e)
        assert "\n" not in (refused or "")
        assert bool(entry.problems()) == bool(refused)
        if refused is None:  # what is not checked is what nothing depends on
            assert json.loads(text)["identity"] == IDENTITY

    read()


@pytest.mark.parametrize("schema", [schemas.Reference, schemas.Memory, schemas.Record])
def test_what_the_store_keeps_of_its_own_is_read_or_refused(schema: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("store") / "file.json"

    @fuzzed(60)
    @given(json_values.map(json.dumps).map(str.encode) | st.binary(max_size=60) | st.sampled_from(MEANT).map(str.encode))
    def read(text: bytes) -> None:
        path.write_bytes(text)
        with suppress(ValueError):
            assert schemas.read(path, schema) == json.loads(text)

    read()


ARCHITECTURES = assets.ROOT / "architectures"
LISTED = [{"prompt": "p", "images": {"a": "a/0.png", "b": "b/0.png"}}, {"prompt": "q", "images": {"a": "1", "b": "2"}}]


def test_lists_of_pictures_and_of_prompts_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("lists") / "list.json"

    @fuzzed(150)
    @given((changed(LISTED) | changed([{"prompt": "p"}, "q"])).map(json.dumps).map(str.encode) | st.binary(max_size=60))
    def read(text: bytes) -> None:
        path.write_bytes(text)
        with suppress(ConfigError):
            picture_list.read(path)
        with suppress(ValueError):
            assert all(prompts.read(str(path)).prompts)

    read()


def opened(folder: Path, out: Path) -> None:
    """Plan with a user's pipeline, pin it, and open all of it."""
    picks = ["model=flux_dev", "format=int8_sq", "calib=default", "calib.size=1", "calib.batch_size=1", "calib.chunk=1"]
    picks += ["calib.prompts=asset:prompts/calibration.txt"]
    size = ["model.height=32", "model.width=32", "model.max_sequence_length=16", "model.long_prompts=cut"]
    job.prepare(composed(*picks, *size, f"model.source={folder}"), [], dry=True, sweep=False)
    b = Bench(out, str(folder))
    open_pipeline(b.context(), b.pipeline())


def refused(folder: Path, out: Path) -> str:
    """The line, empty where there is none."""
    try:
        opened(folder, out)
    except (ConfigError, PlanError, SourceError) as e:
        return str(e)
    return ""


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # where a plan looks for a store
    return Path(shutil.copytree(saved("flux", **ONE), tmp_path / "pipeline"))


def test_a_users_pipeline_is_opened_or_refused_in_words(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    known = {p: json.loads(p.read_text()) for p in sorted(pipeline.rglob("*.json")) if p.stat().st_size < 10_000}
    assert {"model_index.json", "config.json", "scheduler_config.json", "tokenizer_config.json"} <= {p.name for p in known}
    texts = {p: changed(content).map(json.dumps).map(str.encode) | st.binary(max_size=60) for p, content in known.items()}
    lines = set()

    @fuzzed(25)
    @given(st.sampled_from([*known]).flatmap(lambda p: st.tuples(st.just(p), texts[p])))
    def read(given: tuple[Path, bytes]) -> None:
        path, text = given
        before = path.read_bytes()
        path.write_bytes(text)
        try:
            lines.add(line := refused(pipeline, tmp_path_factory.mktemp("read")))
        finally:
            path.write_bytes(before)
        assert all(x.startswith("model.") for x in line.splitlines())

    read()
    assert len(lines) > 1


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("model_index.json", {"vae": [-1, "AutoencoderKL"]}, "model_index.json names no library and class of its vae"),
        ("model_index.json", {"vae": ["diffusers"]}, "model_index.json names no library and class of its vae"),
        ("transformer/config.json", {"joint_attention_dim": ["x", 1]}, "joint_attention_dim is ['x', 1], and Flux"),
        ("transformer/config.json", {"axes_dims_rope": [8, "x"]}, "axes_dims_rope has 'x' in it, and Flux"),
        ("vae/config.json", {"down_block_types": 0}, "down_block_types is 0, and AutoencoderKL takes list"),
        ("vae/config.json", {"block_out_channels": [4]}, "index out of range"),
        ("vae/config.json", {"layers_per_block": 3}, "has no weights of "),
        ("transformer/config.json", {"guidance_embeds": True}, "has no weights of "),
        ("scheduler/scheduler_config.json", {"base_image_seq_len": None}, "base_image_seq_len is None, and FlowMatch"),
        ("scheduler/scheduler_config.json", {"shift_terminal": "x"}, "shift_terminal is 'x', and FlowMatch"),
        ("scheduler/scheduler_config.json", {"_class_name": 7}, "cannot be read: "),
        (
            "tokenizer/tokenizer_config.json",
            {"model_max_length": {}},
            "has {} as model_max_length in tokenizer/tokenizer_config",
        ),
        ("tokenizer_2/tokenizer_config.json", {"pad_token": [None]}, "cannot be read: "),
    ],
)
def test_what_a_users_pipeline_says_that_cannot_be_is_named(
    file: str, change: dict[str, Any], said: str, pipeline: Path, tmp_path: Path
) -> None:
    path = pipeline / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    line = refused(pipeline, tmp_path)
    assert line.startswith("model.source: ")
    assert said in line
    assert "\n" not in line


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '"x"', "{"])
@pytest.mark.parametrize("file", ["model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"])
def test_a_file_of_a_users_pipeline_that_is_no_object_is_named(file: str, text: str, pipeline: Path, tmp_path: Path) -> None:
    (pipeline / file).write_text(text)
    line = refused(pipeline, tmp_path)
    assert line.startswith("model.source: ")
    assert file in line
    assert "\n" not in line


@pytest.mark.parametrize("architecture", sorted(p.name for p in ARCHITECTURES.iterdir()))
def test_what_the_makers_of_models_wrote_can_be(architecture: str) -> None:
    folder = ARCHITECTURES / architecture
    index = json.loads((folder / "model_index.json").read_text())
    kinds = {n: part_class(*v) for n, v in index.items() if isinstance(v, list) and v[0] == "diffusers"}
    files = {p: cls for n, cls in kinds.items() if cls for p in (folder / n).glob("*config.json")}
    assert files
    assert not [odd for p, cls in files.items() if (odd := mistyped(cls, json.loads(p.read_text())))]


def test_null_stands_for_what_is_off_whatever_the_annotation_says() -> None:
    """As in the config of the UNet of stable-diffusion-xl-base-1.0."""
    cls = part_class("diffusers", "UNet2DConditionModel")
    assert mistyped(cls, {"upcast_attention": None, "only_cross_attention": None}) is None
    assert mistyped(cls, {"act_fn": None}) == "act_fn is None, and UNet2DConditionModel takes text"
    said = mistyped(cls, {"upcast_attention": "no"})
    assert said == "upcast_attention is 'no', and UNet2DConditionModel takes null or number"
