"""A source is known by content or commit, and what costs time or a network is remembered."""

import hashlib
import json
import os
import shutil

import pytest
from huggingface_hub import HfApi, constants

from diffopt.errors import PlanError
from diffopt.store import source
from diffopt.store.source import Source, Sources, read, read_scorer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(tmp_path, pipeline_directory):
    return pipeline_directory(tmp_path / "model")


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "sources.json"


@pytest.fixture
def digest(memory):
    """`digest(path)`, each time as by another process."""
    return lambda path: Sources(memory).digest(Source(str(path)))


# directories


def test_a_directory_is_known_by_its_content_and_not_by_its_path(model, tmp_path, digest):
    shutil.copytree(model, tmp_path / "deep" / "copy")
    assert digest(tmp_path / "deep" / "copy") == digest(model)


def test_changed_content_is_noticed(model, digest):
    before = digest(model)
    weights = model / "transformer" / "weights.safetensors"
    weights.write_bytes(b"other")
    assert digest(model) != before


def test_changed_content_of_the_same_size_is_noticed(model, digest):
    before = digest(model)
    weights = model / "transformer" / "weights.safetensors"
    modified = weights.stat().st_mtime_ns
    weights.write_bytes(b"WEIGHTS")
    os.utime(weights, ns=(modified + 1, modified + 1))
    assert digest(model) != before


def test_the_time_of_a_file_does_not_count(model, digest):
    before = digest(model)
    os.utime(model / "model_index.json", (0, 0))
    assert digest(model) == before


def test_the_name_of_a_file_counts(model, digest):
    before = digest(model)
    (model / "transformer" / "weights.safetensors").rename(model / "transformer" / "renamed.safetensors")
    assert digest(model) != before


def test_hidden_files_do_not_count(model, digest):
    before = digest(model)
    (model / ".cache" / "huggingface").mkdir(parents=True)
    (model / ".cache" / "huggingface" / "lock").write_text("x")
    (model / "transformer" / ".gitattributes").write_text("x")
    assert digest(model) == before


def test_a_directory_below_a_hidden_one_counts(tmp_path, pipeline_directory, digest):
    model = pipeline_directory(tmp_path / ".models" / "mine")
    before = digest(model)
    (model / "model_index.json").write_text("{}")
    assert digest(model) != before


def test_the_content_behind_linked_files_counts(model, tmp_path, digest):
    before = digest(model)
    weights = model / "transformer" / "weights.safetensors"
    weights.rename(tmp_path / "blob")
    weights.symlink_to(tmp_path / "blob")
    assert digest(model) == before


def test_the_content_behind_linked_directories_counts(model, tmp_path, digest):
    before = digest(model)
    (model / "transformer").rename(tmp_path / "transformer")
    (model / "transformer").symlink_to(tmp_path / "transformer")
    assert digest(model) == before


def test_a_file_is_hashed_once(model, digest, monkeypatch):
    before = digest(model)

    def hashed(*_):
        raise AssertionError("hashed again")

    monkeypatch.setattr(hashlib, "file_digest", hashed)
    assert digest(model) == before


def test_only_what_changed_is_hashed_again(model, digest, monkeypatch):
    digest(model)
    (model / "model_index.json").write_text("{}")
    hashed = []

    def watched(file, name, digest=hashlib.file_digest):
        hashed.append(os.path.basename(file.name))
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    digest(model)
    assert hashed == ["model_index.json"]


@pytest.mark.parametrize("content", ["", "{", "[1, 2]"])
def test_a_lost_memory_costs_time_only(model, digest, memory, content):
    before = digest(model)
    memory.write_text(content)
    assert digest(model) == before


def test_a_directory_is_found_again_by_its_digest(model, memory):
    sources = Sources(memory)
    assert sources.locate(sources.digest(Source(str(model)))) == model


def test_a_directory_of_the_package_is_a_source():
    assert Source("asset:emoji/emoji-flux").directory.is_dir()


# planning


def test_planning_hashes_what_is_small(model, memory, digest):
    assert Sources(memory, dry=True).digest(Source(str(model))) == digest(model)


def test_planning_writes_nothing(model, memory):
    Sources(memory, dry=True).digest(Source(str(model)))
    assert not memory.exists()


def test_planning_leaves_what_is_large_unresolved(model, memory, monkeypatch):
    monkeypatch.setattr(source, "QUICK", 6)
    assert Sources(memory, dry=True).digest(Source(str(model))) is None


def test_planning_knows_what_is_large_once_it_was_hashed(model, memory, digest, monkeypatch):
    monkeypatch.setattr(source, "QUICK", 6)
    before = digest(model)
    assert Sources(memory, dry=True).digest(Source(str(model))) == before


def test_planning_asks_no_network(memory, monkeypatch):
    def asked(*_, **__):
        raise AssertionError("asked the hub")

    monkeypatch.setattr(HfApi, "model_info", asked)
    assert Sources(memory, dry=True).digest(Source("org/name")) is None


# the hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that names COMMIT for every revision; `hub` lists what it was asked for."""
    asked = []

    def model_info(self, repo, *, revision, **_):
        asked.append((repo, revision))
        return type("Info", (), {"sha": COMMIT})()

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", model_info)
    return asked


def test_a_hub_model_is_known_by_its_commit(memory, hub):
    assert Sources(memory).digest(Source("org/name@v1")) == f"hub:org/name@{COMMIT}"
    assert hub == [("org/name", "v1")]


def test_a_hub_model_without_a_revision_is_its_main_branch(memory, hub):
    Sources(memory).digest(Source("org/name"))
    assert hub == [("org/name", "main")]


def test_a_commit_needs_no_hub(memory, hub):
    assert Sources(memory, dry=True).digest(Source(f"org/name@{COMMIT}")) == f"hub:org/name@{COMMIT}"
    assert hub == []


def test_planning_knows_a_commit_that_a_run_has_resolved(memory, hub):
    resolved = Sources(memory).digest(Source("org/name"))
    assert Sources(memory, dry=True).digest(Source("org/name")) == resolved


def test_revisions_are_remembered_apart(memory, hub):
    Sources(memory).digest(Source("org/name@v1"))
    assert Sources(memory, dry=True).digest(Source("org/name@v2")) is None


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """org/name in a local cache of the hub, and no network."""
    repo = tmp_path / "hub" / "models--org--name"
    snapshot = repo / "snapshots" / COMMIT
    (repo / "refs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (snapshot / "model_index.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_cached_model_is_resolved_offline(memory, cached):
    assert Sources(memory).digest(Source("org/name")) == f"hub:org/name@{COMMIT}"


def test_a_cached_model_is_located_offline(memory, cached):
    sources = Sources(memory)
    assert sources.locate(sources.digest(Source("org/name"))) == cached


def line(error):
    """The text of an error, which is one line of house style."""
    text = str(error.value)
    assert text.startswith("source: ")
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("name", ["org/other", "org/name@v2"])
def test_what_is_not_cached_is_one_line_offline(memory, cached, name):
    with pytest.raises(PlanError) as caught:
        Sources(memory).digest(Source(name))
    assert f"got {name!r}" in line(caught)


def test_a_hub_that_cannot_be_reached_is_one_line(memory, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    with pytest.raises(PlanError) as caught:
        Sources(memory).digest(Source("org/name"))
    assert "got 'org/name'" in line(caught)
    assert "network" in line(caught)


def test_nothing_is_remembered_of_what_could_not_be_resolved(memory, cached):
    with pytest.raises(PlanError):
        Sources(memory).digest(Source("org/other"))
    assert not memory.exists() or "org/other" not in json.dumps(json.loads(memory.read_text()))


# names


@pytest.mark.parametrize("name", ["org/name", "org/name@main", "org/name@refs/pr/1", "a.b-c/d_e"])
def test_a_hub_id_is_a_source(name):
    assert read(name) == Source(name)


def test_a_directory_goes_before_a_hub_id_of_the_same_name(tmp_path, monkeypatch, pipeline_directory):
    pipeline_directory(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert read("org/name").directory


@pytest.mark.parametrize(
    "value",
    [None, 7, "", "name", "/no/such/directory", "./org/name", "~/no/such", "a/b/c", "asset:emoji/no-such", "org/name@"],
)
def test_what_is_neither_a_directory_nor_a_hub_id_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="hub id"):
        read(value)


def test_a_file_is_a_source_where_it_may_hold_a_backbone(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "model.ckpt").touch()
    assert read(str(tmp_path / "model.safetensors")).local
    with pytest.raises(ValueError, match="is a pickle"):
        read(str(tmp_path / "model.ckpt"))


def test_of_a_hub_repository_only_the_files_of_the_pipeline_are_downloaded():
    from huggingface_hub.utils import filter_repo_objects

    from diffopt.store.source import UNWANTED, WANTED

    wanted = [
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "tokenizer_2/spiece.model",
        "README.md",
        "LICENSE.md",
    ]
    spare = [
        "flux1-dev.safetensors",
        "dev_grid.jpg",
        "unet/diffusion_pytorch_model.bin",
        "unet/model.onnx",
        "unet/model.fp16.safetensors",
    ]
    assert list(filter_repo_objects(wanted + spare, allow_patterns=WANTED, ignore_patterns=UNWANTED)) == wanted


def test_a_file_of_weights_stands_for_its_directory(tmp_path):
    (tmp_path / "ImageReward.pt").write_text("x")
    assert read_scorer(str(tmp_path / "ImageReward.pt")).directory == tmp_path
