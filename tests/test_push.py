"""`--push-to-hub`: against a server on this machine that speaks the hub's protocol."""

import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub import COMMIT, Hub, hub
from huggingface_hub import constants
from shipped import CHECKPOINT, DEPLOYED, export, store_of
from test_layouts import made
from tiny import bench

from diffopt.errors import StoreError
from diffopt.store.store import Store

__all__ = ["hub"]  # the fixture


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_of(bench(), "fp8", tmp_path_factory.mktemp("push"), made(bench(), "fp8"))


def push(store: Store, out: Path, *flags: str) -> None:
    export(store, DEPLOYED, out, f"--source={bench().source}", "--push-to-hub", "me/tiny", *flags)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_without_yes_it_is_only_said_what_would_be_uploaded(store: Store, hub: Hub, tmp_path: Path, capsys: Any) -> None:
    push(store, tmp_path / "out")
    said = capsys.readouterr().out
    assert not hub.asked
    assert f"to the hub: me/tiny, public where there is none yet; {len(files(tmp_path / 'out'))} files, " in said
    assert all(name in said for name in files(tmp_path / "out"))
    assert "nothing was uploaded" in said


def test_with_yes_every_file_arrives_in_one_commit(store: Store, hub: Hub, tmp_path: Path, capsys: Any) -> None:
    push(store, tmp_path / "out", "--yes", "--private")
    assert hub.made["visibility"] == "private"
    assert hub.made["name"] == "tiny"
    assert hub.files == files(tmp_path / "out")
    assert [path for _, path in hub.asked].count("/api/models/me/tiny/commit/main") == 1
    assert f"uploaded: {constants.ENDPOINT}/me/tiny/commit/{COMMIT}" in capsys.readouterr().out
    assert "`me/tiny` is this folder" in (tmp_path / "out/README.md").read_text()


def test_the_same_command_with_yes_uploads_the_folder_that_is_there(store: Store, hub: Hub, tmp_path: Path) -> None:
    push(store, tmp_path / "out")
    (tmp_path / "out/README.md").write_text("my own words")
    push(store, tmp_path / "out", "--yes")
    assert hub.files["README.md"] == b"my own words"


def test_a_folder_that_was_changed_is_not_uploaded(store: Store, hub: Hub, tmp_path: Path) -> None:
    push(store, tmp_path / "out")
    (tmp_path / "out/secret.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"is not as it was written: secret\.txt was added \(got .*\); give a new one"):
        push(store, tmp_path / "out", "--yes")
    assert not hub.asked


def test_the_folder_of_another_artifact_is_not_uploaded(store: Store, hub: Hub, tmp_path: Path) -> None:
    export(store, CHECKPOINT, tmp_path / "out", "--as", "diffusers", f"--source={bench().source}")
    with pytest.raises(StoreError, match="the directory exists"):
        push(store, tmp_path / "out", "--yes")


def line(store: Store, out: Path) -> str:
    with pytest.raises(
        StoreError, match=r"\Astore export: push to the hub: .* \(got '.*'\); .*; the folder is kept\Z"
    ) as caught:
        push(store, out, "--yes")
    assert (out / "README.md").is_file()
    return str(caught.value)


@pytest.mark.parametrize(
    ("status", "said"), [(401, "HF_TOKEN"), (403, "a token that may write"), (404, "check its name"), (500, "try again later")]
)
def test_a_hub_that_refuses_is_one_line(status: int, said: str, store: Store, hub: Hub, tmp_path: Path) -> None:
    hub.refuses = status
    found = line(store, tmp_path / "out")
    assert said in found
    assert str(status) in found


def test_a_card_that_the_hub_does_not_take_is_one_line(store: Store, hub: Hub, tmp_path: Path) -> None:
    hub.unread = True
    assert "the card is not taken" in line(store, tmp_path / "out")
    assert not hub.files


def test_nothing_private_goes_to_a_repository_that_is_public(store: Store, hub: Hub, tmp_path: Path) -> None:
    hub.public = True
    with pytest.raises(StoreError, match=r"is there already, and public \(got 'me/tiny'\); make it private first"):
        push(store, tmp_path / "out", "--yes", "--private")
    assert not hub.files


def test_no_token_is_one_line(store: Store, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "there is no token (got 'me/tiny'); run `hf auth login`" in line(store, tmp_path / "out")
    assert not hub.asked


def test_no_network_is_one_line(store: Store, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert "cannot be reached" in line(store, tmp_path / "out")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in line(store, tmp_path / "again")


def test_what_is_no_repository_is_refused_before_anything_is_written(store: Store, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is no name of a repository \(got 'a b/c'\)"):
        export(store, DEPLOYED, tmp_path / "out", f"--source={bench().source}", "--push-to-hub", "a b/c")
    assert not (tmp_path / "out").exists()


def test_an_artifact_that_lies_as_it_is_needs_a_way_out(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"needs a way out \(got checkpoint\); name one with --as"):
        export(store, CHECKPOINT, tmp_path / "out", "--push-to-hub", "me/tiny")
