"""Loading from the hub, against a server on this machine that speaks its protocol."""

import json
import logging
import multiprocessing
import socket
from pathlib import Path

import pytest
from hub import Hub, hub
from huggingface_hub import constants
from tiny import Bench, bench, folder

from diffopt.cli import store as store_command
from diffopt.data import prompts
from diffopt.errors import PlanError, SourceError, StoreError
from diffopt.store import hub as client
from diffopt.store.source import Source, Sources, read_adapter, read_scorer

__all__ = ["hub"]  # the fixture
SHARD = "transformer/diffusion_pytorch_model.safetensors"
SMALL = {"model_index.json": b"{}", "transformer/config.json": b'{"in_channels": 4}', SHARD: bytes(range(256)) * 4096}
"""A pipeline's files, of which one has 1 MiB. No two have the same content: the client fetches one of such files alone."""


def nothing_listens() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def fetched(memory: Path, source: Source) -> Path:
    sources = Sources(memory)
    return sources.locate(sources.pinned(source))


def refused(memory: Path, name: str = "org/name") -> str:
    """The line."""
    with pytest.raises((PlanError, SourceError)) as caught:
        fetched(memory, Source(name))
    text = str(caught.value)
    assert text.startswith("source: ")
    assert "\n" not in text
    assert f"(got '{name}')" in text
    return text


def halves(cache: Path) -> list[Path]:
    """What of an interrupted download has stayed."""
    return [*cache.rglob("*.incomplete")]


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "store" / "sources.json"


# What is served.


def test_a_pipeline_of_the_hub_loads_as_its_directory_does(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = Path(bench().source)
    files = {str(p.relative_to(local)): p.read_bytes() for p in local.rglob("*") if p.is_file()}
    commit = hub.put("org/tiny", files | {"unet/model.onnx": bytes(99)})
    caplog.set_level(logging.INFO, "diffopt")
    made = Bench(folder(), "org/tiny").pipeline()
    assert json.loads((made.path / "pipeline.json").read_text())["source"] == f"hub:org/tiny@{commit}"
    assert (made.path / "layers.json").read_bytes() == (bench().pipeline().path / "layers.json").read_bytes()
    assert hub.gets("unet/model.onnx") == 0
    said = next(r.getMessage() for r in caplog.records if r.getMessage().startswith("hub "))
    assert f"org/tiny@{commit[:12]}: " in said
    assert " MiB to download to " in said
    # All is there: the next run asks nothing.
    monkeypatch.setattr(constants, "ENDPOINT", nothing_listens())
    assert Bench(folder(), f"org/tiny@{commit}").pipeline()


def test_a_part_of_the_hub_stands_in_a_pipeline_that_is_here_or_on_the_hub_too(hub: Hub, memory: Path) -> None:
    """At the top of a repository, or in its folder of that name; no other files of it are fetched."""
    memory.parent.mkdir()
    local = Path(bench().source)
    vae = {p.name: p.read_bytes() for p in (local / "vae").iterdir()}
    more = {"sdxl_vae.safetensors": bytes(99), "diffusion_pytorch_model.fp16.safetensors": bytes(99), "model.onnx": bytes(99)}
    alone = hub.put("org/vae", vae | more)
    hub.put("org/whole", {f"vae/{n}": x for n, x in vae.items()} | {"unet/diffusion_pytorch_model.safetensors": bytes(99)})
    hub.put("org/base", {str(p.relative_to(local)): p.read_bytes() for p in local.rglob("*") if p.is_file()})
    digests = {}
    for base, part in ((str(local), "org/vae"), (str(local), "org/whole"), ("org/base", "org/vae")):
        given = Source(base, own=(("vae", Source(part, part="vae")),))
        assert given.local is None
        assert Sources(memory, dry=True).digest(given) is None
        sources = Sources(memory)
        digests[base, part] = sources.digest(given)
        there = sources.locate(sources.pinned(given))
        assert {n: (there / "vae" / n).read_bytes() for n in vae} == vae
        assert (there / "model_index.json").read_bytes() == (local / "model_index.json").read_bytes()
        assert Sources(memory, dry=True).digest(given) == digests[base, part]
        assert Sources(memory).at_hand(given) == there
    assert len({*digests.values()}) == 3
    assert Sources(memory).digest(Source("org/vae", part="vae")) == f"hub:org/vae@{alone}:part=vae"
    assert [hub.gets(n) for n in (*more, "unet/diffusion_pytorch_model.safetensors")] == [0] * 4
    snapshot = Path(constants.HF_HUB_CACHE) / "models--org--vae" / "snapshots" / alone
    (snapshot / "diffusion_pytorch_model.safetensors").unlink()  # as of a download that was broken off
    assert Sources(memory).at_hand(Source(str(local), own=(("vae", Source("org/vae", part="vae")),))) is None


def test_an_adapter_of_the_hub_is_its_one_file(hub: Hub, memory: Path) -> None:
    hub.put("org/lora", {"style.safetensors": b"weights", "README.md": b"a card"})
    assert fetched(memory, read_adapter("org/lora")).read_bytes() == b"weights"
    hub.put("org/two", {"a.safetensors": b"1", "b.safetensors": b"2"})
    with pytest.raises(SourceError, match=r"holds 2 files .* set its weight_name, one of a\.safetensors, b\.safetensors"):
        fetched(memory, read_adapter("org/two"))


def test_a_scorer_of_the_hub_is_in_the_form_that_its_repository_has(hub: Hub, memory: Path) -> None:
    config = {"config.json": b"{}", "merges.txt": b"", "tf_model.h5": b"tf", "pytorch_model.bin": b"bin"}
    hub.put("org/new", config | {"model.safetensors": b"weights"})
    hub.put("org/old", config)
    names = {p.name for p in fetched(memory, read_scorer("org/new")).iterdir()}
    assert names == {"config.json", "merges.txt", "model.safetensors"}
    names = {p.name for p in fetched(memory, read_scorer("org/old")).iterdir()}
    assert names == {"config.json", "merges.txt", "pytorch_model.bin"}


def test_a_prompt_set_of_the_hub_is_read_anew_and_from_the_cache_without_a_network(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    hub.put("datasets/org/set", {"train.jsonl": b'{"text": "a cat"}\n'})
    assert prompts.read("hub:org/set:text").prompts == ("a cat",)
    hub.put("datasets/org/set", {"train.jsonl": b'{"text": "a dog"}\n'})
    assert prompts.read("hub:org/set:text").prompts == ("a dog",)
    hub.put("datasets/playgroundai/MJHQ-30K", {"meta_data.json": b'{"x": {"prompt": "a ship"}}'})
    assert prompts.read("mjhq").prompts == ("a ship",)
    monkeypatch.setattr(constants, "ENDPOINT", nothing_listens())
    assert prompts.read("hub:org/set:text").prompts == ("a dog",)
    with pytest.raises(ValueError, match=r"cannot be read from the hub \(the hub cannot be reached .*\); check the network"):
        prompts.read("hub:org/other:text")


def test_a_variant_is_downloaded_in_the_place_of_plain_weights_and_is_there_without_a_network(
    hub: Hub, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"vae/diffusion_pytorch_model.safetensors": b"plain", "transformer/x.fp16.bin": b"others"}
    commit = hub.put("org/name", SMALL | other | {SHARD.replace("model.", "model.fp16."): b"halves"})
    source = Source(f"org/name@{commit}", variant="fp16")
    assert Sources(memory).digest(source) == f"hub:org/name@{commit}:variant=fp16"
    found = fetched(memory, source)
    names = {p.name for p in found.glob("*/*model*")}
    assert names == {"diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"}
    assert [p.name for p in (found / "transformer").iterdir()].count("diffusion_pytorch_model.safetensors") == 0
    monkeypatch.setattr(constants, "ENDPOINT", nothing_listens())
    assert fetched(memory, source) == found


# Branches.


def test_a_branch_is_used_at_its_commit_until_one_asks_again(hub: Hub, memory: Path, capsys: pytest.CaptureFixture) -> None:
    memory.parent.mkdir()
    first = hub.put("org/name", SMALL)
    assert Sources(memory).digest(Source("org/name")) == f"hub:org/name@{first}"
    second = hub.put("org/name", SMALL | {"vae/config.json": b"{}"})
    assert Sources(memory).digest(Source("org/name")) == f"hub:org/name@{first}"
    store_command.command(["--store", str(memory.parent), "sources", "--ask", "org/name"])
    assert f"org/name@main  {first} -> {second}, which the next run uses" in capsys.readouterr().out
    assert (fetched(memory, Source("org/name")) / "vae/config.json").is_file()
    store_command.command(["--store", str(memory.parent), "sources"])
    assert f"org/name@main  {second}\n" in capsys.readouterr().out
    with pytest.raises(StoreError, match=r"no run has used it \(got 'org/nam'\); there are org/name"):
        store_command.command(["--store", str(memory.parent), "sources", "org/nam"])


def test_a_branch_is_used_at_the_commit_of_a_shared_store(hub: Hub, memory: Path, tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    first = hub.put("org/name", SMALL)
    Sources(tmp_path / "team/sources.json").digest(Source("org/name"))
    hub.put("org/name", SMALL | {"vae/config.json": b"{}"})
    mine = Sources(memory, shared=(tmp_path / "team/sources.json",))
    assert mine.digest(Source("org/name")) == f"hub:org/name@{first}"


# What is not given.


@pytest.mark.parametrize(
    ("name", "token", "what", "advice"),
    [
        ("org/gated", True, "it is gated", "accept its licence on its page on http"),
        ("org/gated", False, "it is gated", "then run `hf auth login`, or set HF_TOKEN"),
        ("org/gone", True, "there is no such repository; nor is it a directory here", "that your token may read it"),
        ("org/gone", False, "there is no such repository; nor is it a directory here", "if it is private, run `hf auth"),
        ("org/name@v9", True, "there is no such revision", "check the revision after the @"),
    ],
)
def test_what_the_hub_does_not_give_is_a_line(
    name: str, token: bool, what: str, advice: str, hub: Hub, memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("org/gated", SMALL)
    hub.put("org/name", SMALL)
    hub.gated.add("org/gated")
    if not token:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    said = refused(memory, name)
    assert what in said
    assert advice in said.rpartition(" (got ")[2]


def test_a_hub_that_takes_no_token_or_is_out_of_order_is_a_line(
    hub: Hub, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("org/name", SMALL)
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    assert "the hub does not take the token (401)" in refused(memory)
    for status, said in ((429, "too many requests"), (503, "out of order (503)")):
        hub.refuses = status
        assert said in refused(memory)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_transfer_that_breaks_in_the_middle_goes_on(
    reset: bool, hub: Hub, memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.put("org/name", SMALL)
    hub.cuts = [(SHARD, reset)]
    assert (fetched(memory, Source("org/name")) / SHARD).read_bytes() == SMALL[SHARD]
    assert hub.gets(SHARD) == 2
    assert hub.ranges == ([] if reset else [f"bytes={len(SMALL[SHARD]) // 2}-"])
    assert not halves(tmp_path)


def test_a_transfer_that_always_breaks_is_a_line_and_the_next_run_fetches_only_the_rest(
    hub: Hub, memory: Path, tmp_path: Path
) -> None:
    hub.put("org/name", SMALL)
    hub.cuts = [(SHARD, True)] * client.TRIES
    assert "the transfer from the hub broke" in refused(memory)
    assert not halves(tmp_path)
    there = fetched(memory, Source("org/name"))
    assert (there / SHARD).read_bytes() == SMALL[SHARD]
    assert (there / "model_index.json").is_file()
    assert hub.gets(SHARD) == client.TRIES + 1
    assert [hub.gets(name) for name in ("model_index.json", "transformer/config.json")] == [1, 1]


def test_a_shard_that_is_missing_is_named(hub: Hub, memory: Path) -> None:
    hub.put("org/name", SMALL)
    hub.hidden.add(SHARD)
    assert f"the hub lacks a file of it: {SHARD}" in refused(memory)
    local = Path(bench().source)
    files = {str(p.relative_to(local)): p.read_bytes() for p in local.rglob("*") if p.is_file()}
    weights = files.pop(SHARD)
    first, second = (f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2))
    shards = {"weight_map": {"x": first, "y": second}}
    files |= {f"{SHARD}.index.json": json.dumps(shards).encode(), f"transformer/{first}": weights}
    hub.put("org/tiny", files)
    with pytest.raises(PlanError, match=rf"lacks transformer/{second}, which .* names .*download what is missing"):
        Bench(folder(), "org/tiny").pipeline()


def test_a_full_disk_is_a_line_and_leaves_nothing_half_written(
    hub: Hub, memory: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("org/name", SMALL)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(small_disk))
    assert "1.0 MiB are to be downloaded, and the disk of the hub's cache has " in refused(memory)
    assert hub.gets(SHARD) == 0
    # Another process may fill it meanwhile.
    monkeypatch.setattr(client, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 40}))
    said = refused(memory)
    assert "the disk of the hub's cache ran full; what arrived whole is kept" in said
    assert "`hf cache rm`, or set HF_HOME to" in said
    assert not halves(small_disk)
    assert not [*small_disk.rglob("*.safetensors")]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "larger"))
    assert (fetched(memory, Source("org/name")) / SHARD).read_bytes() == SMALL[SHARD]


def test_several_jobs_that_want_a_model_at_once_download_it_once(hub: Hub, tmp_path: Path) -> None:
    hub.put("org/name", SMALL)
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(4)

    def job(number: int) -> None:
        start.wait()
        assert (fetched(tmp_path / f"{number}.json", Source("org/name")) / SHARD).read_bytes() == SMALL[SHARD]

    jobs = [fork.Process(target=job, args=(n,)) for n in range(4)]
    for each in jobs:
        each.start()
    for each in jobs:
        each.join()
    assert [each.exitcode for each in jobs] == [0] * 4
    assert hub.gets(SHARD) == 1
